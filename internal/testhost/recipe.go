package testhost

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Suite is the Debian release that the test host runs.
const suite = "trixie"

// A recipe is all that decides what a tree made by mmdebstrap holds. Trees are cached under a hash of
// their recipes, so a change here builds new ones.
type recipe struct {
	Name     string
	Packages []string
	Options  []string // for mmdebstrap
}

// recipes are the trees to build.
var recipes = []recipe{hostRecipe, debRecipe}

var hostRecipe = recipe{
	Name: "host",
	Packages: []string{
		// The system under which machines run.
		"systemd", "systemd-sysv", "libpam-systemd", "systemd-container", "dbus", "dbus-bin", "polkitd",
		"lxc", "fuse3", "kmod", "iproute2", "util-linux", "e2fsprogs",
		// The tools that a person would want to bring into a machine.
		"acl", "attr", "bash", "bsdutils", "curl", "file", "gdb", "less", "lsof", "procps", "psmisc", "strace",
		"sudo", "tcpdump", "tmux", "vim-tiny", "xxd",
		// Clients of the bus that are not ours.
		"libglib2.0-bin", "python3-dbus",
	},
	Options: append(trimmed(),
		// Somebody who is not root.
		`--customize-hook=chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash alice`),
}

var debRecipe = recipe{
	Name:     "deb",
	Packages: []string{"systemd", "systemd-sysv", "dbus"},
	Options:  trimmed(),
}

// trimmed leaves out what nobody reads in a test: half of the files.
func trimmed() []string {
	return []string{
		"--variant=minbase",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
	}
}

// key names the trees that the recipes make: a short hash of their text.
func key(recipes []recipe) string {
	text, err := json.Marshal(recipes)
	if err != nil {
		panic(err) // a recipe is made of strings
	}
	sum := sha256.Sum256(append(text, suite...))
	return hex.EncodeToString(sum[:6])
}
