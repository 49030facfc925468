//go:build integration

package main

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// inBareHost is the variable that says to a test that it runs on the bare host.
const inBareHost = "TEST_IN_BARE_HOST"

// bareRoot has the tree of the bare host: a Debian of systemd, D-Bus and what is essential, and of the product.
const bareRoot = "/var/lib/testhost/bare"

// What is in toolsDir is all that the bare host has of tools, and of their libraries. These are some of them.
var lacking = []string{"gdb", "strace", "lsof", "ss", "ps", "pkill", "tcpdump", "curl", "vim.tiny"}

// bareImages are what the tools are brought from there, and the kind of machine that they are brought into.
var bareImages = []struct{ title, image, kind, ref string }{
	{"a directory", toolsDir, "unshare", "pid:LEADER"},
	{"squashfs", "/srv/images/squashfs.raw", "service", "unit:machine-NAME"},
	{"ext4", "/srv/images/ext4.raw", "unshare", "pid:LEADER"},
	{"a disk with partitions", "/srv/images/gpt.raw", "service", "unit:machine-NAME"},
	{"an OCI layout", "oci:/srv/images/oci-dir", "unshare", "pid:LEADER"},
	{"an archive of docker save", "docker-archive:/srv/images/docker-archive", "service", "unit:machine-NAME"},
	{"a machine", "unit:tools.service", "unshare", "pid:LEADER"},
}

// bareKinds are further machines, that the tools of one image are brought into. Incus and rootless Podman want more of a host than can be brought
// there by copying.
var bareKinds = []string{"nspawn-users", "nspawn-read-only", "lxc", "lxc-mapped", "docker", "podman"}

// bareEngines are the packages that these machines need, and that have no tools.
var bareEngines = []string{
	"systemd-container", "lxc", "liblxc-common", "liblxc1t64", "docker.io", "docker-cli", "containerd", "runc", "podman", "conmon", "crun", "netavark",
	"golang-github-containers-common", "golang-github-containers-image",
}

// A host that has no tools itself has those of an image. The test host has them all. So the test boots another host in it, which has not,
// and runs itself there.
func TestHostWithoutTools(t *testing.T) {
	if os.Getenv(inBareHost) == "" {
		testInBareHost(t)
		return
	}
	for _, name := range lacking {
		if path, err := exec.LookPath(name); err == nil {
			t.Errorf("the host has %s", path)
		}
	}
	must(t, "systemd-run", "--quiet", "--unit=tools", "--property=RootDirectory="+toolsDir, "sleep", "infinity")
	for _, i := range bareImages {
		t.Run(i.title, func(t *testing.T) {
			s := newSubject(t, i.kind, "bare", "slim", i.ref)
			for _, name := range lacking {
				if o := attachTo(t, s.by(name, "--version")...); o.code != 127 {
					t.Errorf("with the host's tools, %s: %+v", name, o)
				}
			}
			s.image = []string{"--image=" + i.image}
			s.accept(t)
		})
	}
	for _, k := range kinds {
		if !slices.Contains(bareKinds, k.kind) {
			continue
		}
		t.Run(k.title, func(t *testing.T) {
			s := newSubject(t, k.kind, "bare-"+k.kind, "slim", k.ref)
			s.image = []string{"--image=/srv/images/squashfs.raw"}
			s.accept(t)
		})
	}
	t.Run("another libc", func(t *testing.T) {
		s := newSubject(t, "unshare", "bare", "slim", "pid:LEADER")
		s.image = []string{"--image=/srv/musl"}
		got := succeeds(t, s.by("sh", "-c", "cat /proc/1/comm; ls /lib")...)
		if !strings.HasPrefix(got, "slim\nld-musl-") || strings.Count(got, "\n") != 2 {
			t.Errorf("got %q", got)
		}
	})
}

// accept checks all that has to work.
func (s *subject) accept(t *testing.T) {
	mounts, members := s.state(t)
	for _, c := range cases {
		if s.caps&c.needs == c.needs {
			t.Run(c.title, func(t *testing.T) { c.check(s, t) })
		}
	}
	t.Run("vim", s.vim)
	t.Run("unchanged", func(t *testing.T) { s.unchanged(t, mounts, members) })
}

// vim changes a file of the machine's.
func (s *subject) vim(t *testing.T) {
	o := attachTo(t, s.by("sh", "-ec", `f=/tmp/f$$; echo one >$f; vim.tiny -u NONE -es -c s/one/two/ -c wq $f; cat $f; rm $f`)...)
	if o.code != 0 || o.stdout != "two\n" {
		t.Errorf("got %+v", o)
	}
}

// testInBareHost runs the test that it is called by on the bare host.
func testInBareHost(t *testing.T) {
	newTools(t)
	for _, kind := range []string{"squashfs", "ext4", "gpt"} {
		diskImage(t, kind, toolsDir)
	}
	for _, format := range []string{"oci-dir", "docker-archive"} {
		ociImage(t, format)
	}
	t.Cleanup(func() { must(t, "rm", "-rf", bareRoot) })
	must(t, "sh", "-ec", `cp --archive --reflink=auto /var/lib/machines/deb "$1"
		cp --archive --parents /usr/bin/cntr* /usr/lib/cntr-attach /usr/lib/systemd/system/*cntr* /usr/share/dbus-1/*/org.cntr.* \
			/usr/lib/testhost/machine /var/lib/machines/slim "$1"
		dpkg --listfiles $3 | sort -u | while read -r f; do if [ -e "$f" ]; then echo "$f"; fi; done |
			tar --create --no-recursion --files-from=- 2>/dev/null | tar --extract --keep-directory-symlink --directory="$1"
		cp --archive --parents /usr/bin/ip /etc/docker/daemon.json /etc/subuid /etc/subgid "$1"
		grep ^docker: /etc/group >>"$1/etc/group"
		{ printf "%s\n" /usr/lib/cntr-attach/cntr-attachd /usr/bin/ip; dpkg --listfiles $3 | grep -E "/s?bin/|/libexec/|/lib/.*\.so|/lib/(systemd|podman)/"; } |
			while read -r f; do if [ -f "$f" ]; then ldd "$f" 2>/dev/null || true; fi; done |
			grep -o "/[^ ]*\.so[^ ]*" | sort -u | while read -r f; do mkdir -p "$1${f%/*}"; cp --dereference --update=none "$f" "$1$f"; done
		cp "$2" "$1/usr/lib/testhost/test"
		cp --archive /var/lib/testhost/musl "$1/srv/musl"; mkdir "$1/srv/tools" "$1/srv/images"`, "sh", bareRoot, executable(t), strings.Join(bareEngines, " "))
	must(t, "systemd-run", "--quiet", "--collect", "--unit=bare", "--service-type=notify", "--property=Delegate=yes",
		"--setenv=SYSTEMD_NSPAWN_API_VFS_WRITABLE=1", "systemd-nspawn", "--quiet", "--keep-unit", "--boot", "--notify-ready=yes",
		"--machine=bare", "--directory="+bareRoot, "--capability=all", "--private-users=no", "--system-call-filter=@known", "--private-network",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--bind=/dev/fuse", "--bind=/dev/loop-control",
		"--bind-ro="+toolsDir, "--bind-ro=/srv/images")
	t.Cleanup(func() {
		must(t, "machinectl", "kill", "--kill-whom=leader", "--signal=KILL", "bare") // all in it goes with the leader
		must(t, "sh", "-c", "systemctl stop bare.service 2>&1 || true")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--machine=bare", "--setenv="+inBareHost+"=1",
		"--setenv=HOME=/root", "/usr/lib/testhost/test", "-test.v", "-test.run=^"+t.Name()+"$").CombinedOutput()
	if t.Logf("%s", out); err != nil {
		t.Fatal(err)
	}
}
