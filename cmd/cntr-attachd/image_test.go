//go:build integration

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// asAliceWith runs cntr-attach as alice.
func asAliceWith(t *testing.T, args ...string) (string, bool) {
	t.Helper()
	return try(t, alice(append([]string{"cntr-attach", "--chdir=/", "--no-ask-password"}, args...)...)...)
}

// Users who are not root have no more of an image than they had before.
func TestImagesOfUsers(t *testing.T) {
	const toolsDir = "/srv/tools"
	if _, err := os.Stat(toolsDir); err != nil {
		must(t, "/usr/lib/testhost/tools", toolsDir)
	}
	grant(t, "attach", "attach-privileged")
	private := filepath.Join(t.TempDir(), "private")
	must(t, "sh", "-ec", `mkdir -p "$1/image"; chmod 700 "$1"`, "sh", private)
	must(t, "sh", "-c", "echo secret >"+toolsDir+"/root/secret; chmod 600 "+toolsDir+"/root/secret")
	for _, target := range []string{"slim", "debu"} {
		if out, ok := asAliceWith(t, "--image="+toolsDir, target, "sh", "-c", "cat /etc/issue; cat /root/secret 2>/dev/null"); out != "This is the image of tools." || ok {
			t.Errorf("%s: %q, %v", target, out, ok)
		}
	}
	for image, want := range map[string]string{
		private + "/image": "you may not open the image",
		private + "/none":  "you may not open the image",
		"deb":              "you may not open the image", // /var/lib/machines is root's
		"/proc/1/fd/0":     "you may not open the image",
		"/proc/1/fd/9999":  "you may not open the image",
		"/proc/1/root":     "you may not open the image",
		fmt.Sprintf("/proc/%d/root/etc", os.Getpid()): "you may not open the image",
	} {
		if out, ok := asAliceWith(t, "--image="+image, "debu", "true"); ok || !strings.Contains(out, want) {
			t.Errorf("--image=%s: %q, want %q", image, out, want)
		}
	}
	// Files of a machine that is the image are read as alice, whom polkit lets in.
	if out, ok := asAliceWith(t, "--image=machine:debu", "slim", "cat", "/etc/shadow"); ok || !strings.Contains(out, "Permission denied") {
		t.Errorf("a file of root's in a machine: %q", out)
	}
	if out, ok := asAliceWith(t, "--image=machine:debu", "slim", "cat", "/etc/os-release"); !ok {
		t.Errorf("a file of a machine: %q", out)
	}
}

// It takes the right to attach to a machine to have it as an image.
func TestMachineAsImageTakesTheRightToIt(t *testing.T) {
	grant(t, "attach")
	if out, ok := asAliceWith(t, "--image=machine:debu", "debu", "true"); !ok {
		t.Errorf("%q", out)
	}
	if out, ok := asAliceWith(t, "--image=machine:deb", "debu", "true"); ok || !strings.Contains(out, "org.cntr.Attach1.attach-privileged") {
		t.Errorf("a privileged machine as image: %q", out)
	}
	if out, ok := asAliceWith(t, "--image=dep", "debu", "true"); ok || out != `cntr-attach: no image is called "dep"` {
		t.Errorf("%q", out)
	}
}

// What root has configured is opened as root, and read as who attaches.
func TestConfiguredImageOfUsers(t *testing.T) {
	grant(t, "attach")
	must(t, "sh", "-ec", "mkdir -p /etc/cntr; printf '[Attach]\\nImage=deb\\n' >/etc/cntr/attach.conf")
	t.Cleanup(func() { must(t, "rm", "-r", "/etc/cntr") })
	out, ok := asAliceWith(t, "debu", "sh", "-c", "[ -e /usr/bin/gdb ] || echo deb; cat /etc/shadow")
	if !strings.HasPrefix(out, "deb\n") || ok || !strings.HasSuffix(out, "Permission denied") {
		t.Errorf("%q, %v", out, ok)
	}
	if out, ok := asAliceWith(t, "--image=deb", "debu", "true"); ok {
		t.Errorf("the same image, named: %q", out)
	}
}

// A disk image is parsed by the kernel: users can use those only that nobody but root can have made.
func TestDiskImagesOfUsers(t *testing.T) {
	grant(t, "attach")
	must(t, "sh", "-ec", `mkdir -p /srv/disks/open /srv/tree/bin; cp /usr/bin/busybox /srv/tree/bin/; ln -sf busybox /srv/tree/bin/true
		mksquashfs /srv/tree /srv/disks/good -quiet -no-progress -noappend; cd /srv/disks; cp good secret; chmod 600 secret; cp good writable; chmod 666 writable
		cp good others; chown alice others; chmod 1777 open; cp good open/moved; ln -s good link; cp good /home/alice/own; chown alice /home/alice/own`)
	t.Cleanup(func() { must(t, "rm", "-rf", "/srv/disks", "/srv/tree", "/home/alice/own", "/etc/cntr") })
	for image, want := range map[string]string{
		"/srv/disks/good":       "",
		"/srv/disks/link":       "",
		"/srv/disks/secret":     "you may not open the image",
		"/srv/disks/writable":   "is not root's alone: others may write to /srv/disks/writable",
		"/srv/disks/others":     "is not root's alone: others may write to /srv/disks/others",
		"/srv/disks/open/moved": "is not root's alone: others may write to /srv/disks/open",
		"/home/alice/own":       "is not root's alone: others may write to /home/alice",
		"/dev/loop-control":     "is no image",
	} {
		if out, ok := asAliceWith(t, "--image="+image, "debu", "true"); ok != (want == "") || !strings.Contains(out, want) {
			t.Errorf("--image=%s: %q, want %q", image, out, want)
		}
	}
	must(t, "sh", "-ec", "mkdir -p /etc/cntr; printf '[Attach]\\nImage=/srv/disks/secret\\n' >/etc/cntr/attach.conf")
	if out, ok := asAliceWith(t, "debu", "true"); !ok {
		t.Errorf("a configured image: %q", out)
	}
}

// An OCI image that root has configured is opened as root and read as who attaches, whatever they are in the machine. What they import
// themselves is theirs; what root imports is everybody's.
func TestOCIImagesOfUsers(t *testing.T) {
	grant(t, "attach")
	must(t, "sh", "-ec", `mkdir -p /srv/oci/root/bin /srv/oci/root/closed /srv/private /etc/cntr; cd /srv/oci; cp /usr/bin/busybox root/bin
		for n in sh cat; do ln -sf busybox root/bin/$n; done
		for n in hello secret alices closed/x; do echo $n >root/$n; done; chmod 600 root/secret root/alices; chmod 700 root/closed; chown alice root/alices
		umoci init --layout layout; umoci new --image layout:1; umoci insert --image layout:1 root /
		chmod -R go+rX layout; cp -a layout /srv/private/; chmod 700 /srv/private`)
	t.Cleanup(func() {
		must(t, "rm", "-rf", "/srv/oci", "/srv/private", "/etc/cntr", "/home/alice/.local", "/var/lib/cntr/images")
	})
	read := []string{"debu", "sh", "-c", "for n in hello alices secret closed/x; do cat /$n 2>/dev/null || echo none; done"}
	must(t, "sh", "-ec", "printf '[Attach]\\nImage=oci:/srv/private/layout\\n' >/etc/cntr/attach.conf")
	if out, _ := asAliceWith(t, read...); out != "hello\nalices\nnone\nnone" {
		t.Errorf("the configured image: %q", out)
	}
	if out, ok := asAliceWith(t, append([]string{"--image=oci:/srv/private/layout"}, read...)...); ok || !strings.Contains(out, "you may not open the image") {
		t.Errorf("the same image, named: %q", out)
	}
	// Layers that alice can read hide nothing.
	if out, _ := asAliceWith(t, append([]string{"--image=oci:/srv/oci/layout"}, read...)...); out != "hello\nalices\nsecret\nclosed/x" {
		t.Errorf("an image of readable layers: %q", out)
	}
	must(t, "cntrctl", "import", "oci:/srv/oci/layout", "roots")
	if out, ok := try(t, alice("env", "HOME=/home/alice", "cntrctl", "import", "oci:/srv/oci/layout", "alices")...); !ok {
		t.Fatalf("%q", out)
	}
	for _, name := range []string{"roots", "alices"} {
		out, _ := try(t, alice("env", "HOME=/home/alice", "cntr-attach", "--chdir=/", "--no-ask-password", "--image="+name, "debu", "cat", "/hello")...)
		if out != "hello" {
			t.Errorf("%s: %q", name, out)
		}
	}
	if out, ok := try(t, "cntr-attach", "--image=alices", "debu", "cat", "/hello"); ok || !strings.Contains(out, `no image is called "alices"`) {
		t.Errorf("root has alice's image: %q", out)
	}
	if out, ok := try(t, alice("env", "HOME=/home/alice", "cntrctl", "remove", "roots")...); ok || !strings.Contains(out, `no image was imported as "roots"`) {
		t.Errorf("alice removes root's: %q", out)
	}
}
