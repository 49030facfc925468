package testhost

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

// Suite is the Debian release that the test host runs.
const suite = "trixie"

// A recipe is all that decides what a tree made by mmdebstrap holds. Trees are cached under a hash of
// their recipes, so a change here builds new ones.
type recipe struct {
	Name     string
	Packages []string
	Options  []string // for mmdebstrap
	// Backports are installed last, from the release's backports.
	Backports []string
}

// recipes are the trees to build.
var recipes = []recipe{hostRecipe, debRecipe}

var hostRecipe = recipe{
	Name: "host",
	Packages: []string{
		// The system under which machines run.
		"systemd", "systemd-sysv", "libpam-systemd", "systemd-container", "dbus", "dbus-bin", "polkitd",
		"lxc", "fuse3", "kmod", "iproute2", "util-linux", "e2fsprogs",
		// Engines, none of which starts before a test starts it. A user's podman wants a session bus and subordinate ids.
		"docker.io", "docker-cli", "podman", "crun", "incus-base", "incus-client", "dbus-user-session", "uidmap", "busybox-static",
		// The tools that a person would want to bring into a machine.
		"acl", "attr", "bash", "bsdutils", "curl", "file", "gdb", "less", "lsof", "procps", "psmisc", "strace",
		"sudo", "tcpdump", "tmux", "vim-tiny", "xxd",
		"austin", "delve", "gdbserver", "git", "libc6-dbg", "linux-perf", "ltrace", "python3", "redis-server", "socat",
		// Makers of disk images.
		"btrfs-progs", "erofs-utils", "fdisk", "squashfs-tools", "xfsprogs",
		// Makers of container images, and a registry.
		"buildah", "umoci", "docker-registry",
		// Clients of the bus that are not ours.
		"libglib2.0-bin", "python3-dbus",
		// Shells that complete command lines, and the way to another host.
		"bash-completion", "zsh", "fish", "openssh-server",
	},
	Options: append(trimmed(),
		// Somebody who is not root.
		`--customize-hook=chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash alice`,
		// The ids that root gives to containers: LXC's tests use the first of them, Incus takes all.
		`--customize-hook=sed --in-place s/^root:.*/root:100000:1000000000/ "$1/etc/subuid" "$1/etc/subgid"`,
		// Which leaves none for users that tests add.
		`--customize-hook=sed --in-place --regexp-extended 's/^(SUB_[UG]ID_COUNT)[[:space:]].*/\1 0/' "$1/etc/login.defs"`,
		`--customize-hook=systemctl --root="$1" disable `+strings.Join(onDemand, " ")),
}

// onDemand are the units of engines and servers, and what belongs to them: a test starts what it needs.
var onDemand = []string{
	"docker.service", "docker.socket", "containerd.service", "incus.service", "incus.socket", "incus-user.service",
	"incus-user.socket", "incus-startup.service", "docker-registry.service", "lxcfs.service", "netavark-dhcp-proxy.service",
	"netavark-dhcp-proxy.socket", "netavark-firewalld-reload.service", "redis-server.service", "ssh.service",
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
