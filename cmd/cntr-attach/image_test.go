//go:build integration

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// toolsDir has an image made of the tools of the test host: nothing in it is there by the host's leave.
const toolsDir = "/srv/tools"

// newTools makes the image, once.
func newTools(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(toolsDir); err != nil {
		must(t, "/usr/lib/testhost/tools", toolsDir)
	}
}

// imageKinds are the kinds of images that the suite brings tools from, and the machine that each is brought into. Each makes
// an image of toolsDir and returns its name.
var imageKinds = []struct {
	title           string
	make            func(*testing.T) string
	kind, root, ref string
}{
	{"a directory", func(*testing.T) string { return toolsDir }, "", "", userns},
	{"a name", toolsByName, "docker", "slim", "docker:NAME"},
	{"a machine", func(t *testing.T) string { return toolsMachine(t, "tools-plain", "--private-users=no") }, "", "", userns},
	{"a machine with a user namespace", func(t *testing.T) string {
		return toolsMachine(t, "tools-userns", "--private-users=1000000:65536", "--private-users-ownership=map")
	}, "nspawn-as-pid2", "slim", "nspawn:NAME"},
	{"squashfs", func(t *testing.T) string { return diskImage(t, "squashfs", toolsDir) }, "nspawn-as-pid2", "slim", "nspawn:NAME"},
	{"ext4", func(t *testing.T) string { return diskImage(t, "ext4", toolsDir) }, "", "", userns},
	{"an OCI layout", func(t *testing.T) string { return ociImage(t, "oci-dir") }, "", "", userns},
	{"an archive of docker save", func(t *testing.T) string { return ociImage(t, "docker-archive") }, "docker", "slim", "docker:NAME"},
	{"a disk with partitions", func(t *testing.T) string { return diskImage(t, "gpt", toolsDir) }, "docker", "slim", "docker:NAME"},
}

// makers are the commands that make a disk image $2 of a directory $1.
var makers = map[string]string{
	"squashfs": `mksquashfs "$1" "$2" -quiet -no-progress -comp lz4`,
	"erofs":    `mkfs.erofs --quiet "$2" "$1"`,
	"ext4":     `truncate -s 400M "$2"; mke2fs -q -t ext4 -d "$1" "$2"`,
	"btrfs":    `truncate -s 400M "$2"; mkfs.btrfs -q "$2"; ` + fill, // --rootdir loses the numbers of devices
	"xfs":      `truncate -s 400M "$2"; mkfs.xfs -q "$2"; ` + fill,
	// As systemd-dissect(1) finds it: an ESP, and the root file system.
	"gpt": `mksquashfs "$1" "$2.root" -quiet -no-progress -comp lz4
		truncate -s "$(($(stat -c %s "$2.root") + (4 << 20)))" "$2"
		printf '%s\n' 'label: gpt' 'size=1M, type=uefi' 'type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709' | sfdisk --quiet "$2"
		start=$(sfdisk --json "$2" | grep -o '"start": *[0-9]*' | tail -n 1 | grep -o '[0-9]*')
		dd if="$2.root" of="$2" bs=512 seek="$start" conv=notrunc status=none; rm "$2.root"`,
}

// fill copies a directory to a new file system. The nodes are made where udev does not.
const fill = `for n in $(seq 0 15); do [ -e /dev/loop$n ] || mknod /dev/loop$n b 7 $n; done
	mkdir -p /run/fill; mount -o loop "$2" /run/fill; cp -a "$1/." /run/fill; umount /run/fill`

// diskImage makes a disk image of a directory where only root can put one, and returns its path.
func diskImage(t *testing.T, kind, dir string) string {
	t.Helper()
	must(t, "mkdir", "-p", "/srv/images")
	path := "/srv/images/" + kind + ".raw"
	must(t, "sh", "-ec", makers[kind], "sh", dir, path)
	t.Cleanup(func() { must(t, "rm", "-f", path) })
	return path
}

// ociImage makes an OCI image of the tools, with podman: a layer of the tools, and one with a file. It returns its
// name.
func ociImage(t *testing.T, format string) string {
	t.Helper()
	path := "/srv/images/" + format
	must(t, "sh", "-ec", `mkdir -p /srv/images
		podman image exists localhost/tools:latest || {
			tar -C "$3" -c . | podman import --quiet - localhost/tools:one
			printf 'FROM localhost/tools:one\nENV PATH=/usr/bin:/usr/sbin:/opt/oci\nCOPY issue /etc/issue\n' >/srv/images/Containerfile
			echo 'This is the image of tools.' >/srv/images/issue
			podman build --quiet --network=none --tag localhost/tools:latest --file=/srv/images/Containerfile /srv/images
		}
		podman save --quiet --format="$1" --output="$2" localhost/tools:latest`, "sh", format, path, toolsDir)
	t.Cleanup(func() { must(t, "rm", "-rf", path) })
	if format == "docker-archive" {
		return format + ":" + path
	}
	return "oci:" + path
}

func toolsByName(t *testing.T) string {
	const path = "/var/lib/machines/tools"
	must(t, "ln", "-s", toolsDir, path)
	t.Cleanup(func() { must(t, "rm", path) })
	return "tools"
}

// toolsMachine starts a machine that has toolsDir as its root.
func toolsMachine(t *testing.T, name string, options ...string) string {
	t.Helper()
	must(t, append(append([]string{
		"systemd-run", "--quiet", "--collect", "--unit=" + name, "--service-type=notify", "-p", "Delegate=yes", "systemd-nspawn",
		"--quiet", "--keep-unit", "--machine=" + name, "--directory=" + toolsDir, "--read-only", "--private-network",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--as-pid2",
	}, options...), "sleep", "infinity")...)
	leader := leaderOf(t, name)
	t.Cleanup(func() {
		must(t, "kill", "-KILL", strconv.Itoa(leader)) // systemd-nspawn cleans up then
		must(t, "sh", "-c", "systemctl stop "+name+".service 2>&1 || true")
	})
	return "nspawn:" + name
}

// Tools of an image work as those of the host do.
func TestToolsOfAnImage(t *testing.T) {
	newTools(t)
	for _, kind := range imageKinds {
		t.Run(kind.title, func(t *testing.T) {
			image := kind.make(t)
			s := newSubject(t, kind.kind, "t-of-image", kind.root, kind.ref)
			s.image = []string{"--image=" + image}
			mounts, members := s.state(t)
			for _, c := range cases {
				if kind.title == "a name" || kind.title == "a disk with partitions" || kind.title == "an archive of docker save" {
					switch c.title {
					case "pipes", "terminal", "namespaces", "root", "tcpdump":
						continue // what the image is has no part in it that it has not for a directory and for squashfs
					}
				}
				if s.caps&c.needs == c.needs {
					t.Run(c.title, func(t *testing.T) { c.check(s, t) })
				}
			}
			t.Run("unchanged", func(t *testing.T) { s.unchanged(t, mounts, members) })
			if got := succeeds(t, s.by("ls", "/proc/self/fd")...); got != "0\n1\n2\n3\n" {
				t.Errorf("a command has descriptors %q", got)
			}
			// The image's own files, owners and variables; those of its configuration come before its /etc/environment.
			path := "/usr/bin:/usr/sbin:/opt/tools"
			if strings.HasPrefix(image, "oci:") || strings.HasPrefix(image, "docker-archive:") {
				path = "/usr/bin:/usr/sbin:/opt/oci"
			}
			got := succeeds(t, s.by("sh", "-c", `cat /etc/issue; stat -c %u:%g:%a /usr/bin/gdb; echo $PATH; [ -e /usr/bin/vi ] || echo none`)...)
			if want := "This is the image of tools.\n0:0:755\n" + path + "\nnone\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// Who attaches may set PATH; the shell is one that the image has.
func TestShellAndPathOfAnImage(t *testing.T) {
	newTools(t)
	if got := succeeds(t, "--image="+toolsDir, "-E", "PATH=/bin", slim, "sh", "-c", "echo $PATH"); got != "/bin\n" {
		t.Errorf("PATH is %q", got)
	}
	o := runCommand(t, strings.NewReader("echo $0 $SHELL"), "env", "SHELL=/usr/bin/zsh", "cntr-attach", "--image="+toolsDir, slim)
	if o.stdout != "/bin/bash /bin/sh\n" {
		t.Errorf("the shell says %+v", o)
	}
}

// With --direct images are the same.
func TestImageWithoutTheService(t *testing.T) {
	newTools(t)
	for _, image := range []string{toolsDir, "machine:" + userns} {
		o := attachTo(t, "--direct", "--image="+image, slim, "sh", "-c", "[ -e /usr/bin/vi ] || stat -c %u /etc/shadow /etc/environment")
		if !strings.HasPrefix(o.stdout, "0\n") {
			t.Errorf("%s: %+v", image, o)
		}
	}
}

// What a machine has mounted is in the image that it is, and ids are those that it shows.
func TestMachineAsImageHasItsMounts(t *testing.T) {
	leader := strconv.Itoa(leaderOf(t, userns))
	must(t, "nsenter", "--target="+leader, "--all", "sh", "-c", "mkdir -p /mnt/in && mount -t tmpfs tmpfs /mnt/in && echo hello >/mnt/in/file && chown 1:33 /mnt/in/file")
	t.Cleanup(func() {
		waitForNoScopes(t)
		must(t, "nsenter", "--target="+leader, "--all", "sh", "-c", "umount /mnt/in; rmdir /mnt/in")
	})
	for _, target := range []string{slim, userns} {
		got := succeeds(t, "--image=machine:"+userns, target, "sh", "-c", "cat /mnt/in/file; stat -c %u:%g /mnt/in/file /etc/shadow")
		if got != "hello\n1:33\n0:42\n" {
			t.Errorf("%s: got %q", target, got)
		}
	}
	if o := attachTo(t, "--image=machine:"+userns, "--writable", slim, "sh", "-c", "echo x >/mnt/in/new; chown 5 /mnt/in/new"); o.code != 0 {
		t.Errorf("writing: %+v", o)
	}
	if got := must(t, "nsenter", "--target="+leader, "--all", "stat", "-c", "%u:%g", "/mnt/in/new"); got != "5:0" {
		t.Errorf("what was written is of %s", got)
	}
}

func TestImagesThatAreNone(t *testing.T) {
	newTools(t)
	for image, want := range map[string]string{
		"tol":                            `no image is called "tol"`,
		"debz":                           "did you mean deb?",
		"/nonexistent":                   `there is no image at "/nonexistent"`,
		"/etc/passwd/x":                  `there is no image at "/etc/passwd/x"`,
		"/" + strings.Repeat("x", 20000): `there is no image at "/xxx`,
		"/dev/null":                      "is no image",
		"/proc/self/root":                "links of /proc are not followed",
		"/proc/1/cwd/srv":                "links of /proc are not followed",
		"machine:none":                   `no machine is called "none"`,
		"nspawn:none":                    `no machine is called "nspawn:none"`,
		"nonsense:x":                     `no kind of machine is called "nonsense"`,
		"docker:":                        `invalid image "docker:"`,
		"/var/lib/machines/slim":         `command not found: "true"`, // no tools in it
	} {
		o := attachTo(t, "--image="+image, slim, "true")
		if o.code < 125 || o.code > 127 || !strings.Contains(o.stderr, want) {
			t.Errorf("--image=%s: %+v, want %q", image, o, want)
		}
	}
}

// An image's links and devices lead nowhere but into the image and the machine.
func TestHostileDirectoryIsContained(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	newTools(t)
	must(t, "cp", "--archive", toolsDir, dir)
	must(t, "sh", "-ec", `cd "$1"
		ln -s /etc/shadow absolute; ln -s ../../../../../../../etc/shadow dots; ln -s loop loop
		mknod null c 1 3; mknod mem c 1 1; mknod disk b 254 0; mkfifo fifo
		cp usr/bin/id usr/bin/setid; chown 1000:1000 usr/bin/setid; chmod 6755 usr/bin/setid
		cp usr/bin/cat usr/bin/capable; setcap cap_sys_admin+ep usr/bin/capable 2>/dev/null || true
		mkdir many; cd many; seq -f f%g 10000 | xargs touch`, "sh", dir)
	must(t, "chown", "1000:1000", dir) // somebody else's: its set-id bits do not count
	must(t, "chmod", "0755", filepath.Dir(dir), filepath.Dir(filepath.Dir(dir)))
	image := "--image=" + dir
	for script, want := range map[string]string{
		"cat /absolute || echo none":                                "none\n",
		"cat /dots || echo none":                                    "none\n",
		"cat /loop || echo none":                                    "none\n",
		"echo x >/null || cat /mem || cat /disk || echo none":       "none\n",
		"stat -c %F /fifo":                                          "fifo\n",
		"ls /many | wc -l":                                          "10000\n",
		"/usr/bin/setid -u":                                         "0\n",
		"touch /new || echo none":                                   "none\n",
		"stat -c %a /usr/bin/setid; [ -u /usr/bin/setid ]; echo $?": "6755\n0\n",
	} {
		if o := attachTo(t, image, slim, "sh", "-c", script); o.stdout != want {
			t.Errorf("%s: %+v, want %q", script, o, want)
		}
	}
	for _, target := range []string{slim, userns} {
		if o := attachTo(t, image, "--user=65534", target, "/usr/bin/setid", "-u"); o.stdout != "65534\n" {
			t.Errorf("%s: a set-user-id program of the image runs as %+v", target, o)
		}
	}
	if got := succeeds(t, "--image="+toolsDir, slim, "sh", "-c", "grep fuse.cntr /proc/self/mountinfo"); strings.Contains(got, "nosuid") {
		t.Errorf("root's own image: %s", got)
	}
}

// Set-id bits of an OCI image count if who named its layers is root, and stand for the users of the machine.
func TestSetIDOfOCIImage(t *testing.T) {
	dir := t.TempDir()
	must(t, "sh", "-ec", `cd "$1"; mkdir -p root/bin
		for file in /usr/bin/id $(ldd /usr/bin/id | grep -o '/[^ ]*'); do mkdir -p "root/$(dirname $file)"; cp -L $file root/$file; done
		cp /usr/bin/id root/setid; chown 1000:1000 root/setid; chmod 6755 root/setid
		umoci init --layout layout; umoci new --image layout:1; umoci insert --image layout:1 root /`, "sh", dir)
	must(t, "chmod", "0755", filepath.Dir(dir), dir)
	for owner, want := range map[string]string{"root": "1000\n", "1000": "65534\n"} {
		must(t, "chown", owner, dir+"/layout/index.json")
		for _, target := range []string{slim, userns} {
			if got := succeeds(t, "--image=oci:"+dir+"/layout", "--user=65534", target, "/setid", "-u"); got != want {
				t.Errorf("an index of %s's, in %s: %q", owner, target, got)
			}
		}
	}
}

func TestSessionTellsItsImage(t *testing.T) {
	newTools(t)
	sleeper(t, "--image="+toolsDir, slim)
	if got := must(t, "sh", "-c", "cntrctl status --json=short $(cntrctl sessions --json=short | grep -o '\"session\":\"[^\"]*' | cut -d'\"' -f4)"); !strings.Contains(got, `"image":"/srv/tools"`) {
		t.Errorf("got %s", got)
	}
	if got := must(t, "cntrctl", "images", "--no-legend"); !strings.HasPrefix(got, "host host      /\n") || !strings.Contains(got, "\ndeb  directory /var/lib/machines/deb\n") {
		t.Errorf("the images are\n%s", got)
	}
}

// Root configures what who names no image gets.
func TestConfiguredImage(t *testing.T) {
	newTools(t)
	const file = "/etc/cntr/attach.conf"
	configure := func(text string) {
		t.Helper()
		must(t, "mkdir", "-p", filepath.Dir(file))
		if err := os.WriteFile(file, []byte("[Attach]\n"+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { must(t, "rm", "-rf", filepath.Dir(file)) })
	which := []string{"sh", "-c", "[ -e /etc/debian_version ] && echo Debian; [ -e /usr/bin/tmux ] && echo tmux; true"}
	const own, hosts, another = "", "Debian\ntmux\n", "Debian\n"
	configure("Image=" + toolsDir + "\nMachineImage=nspawn:debu nspawn:deb\nMachineImage=sli[k-n] host\n")
	for _, c := range []struct{ image, machine, want string }{
		{"", booted, own}, {"", userns, another}, {"", slim, hosts}, {"--image=host", booted, hosts}, {"--image=" + toolsDir, slim, own},
	} {
		for _, direct := range []string{"--quiet", "--direct"} {
			args := append([]string{direct, c.machine}, which...)
			if c.image != "" {
				args = append([]string{c.image}, args...)
			}
			if o := attachTo(t, args...); o.stdout != c.want || o.stderr != "" {
				t.Errorf("%q: %+v, want %q", args, o, c.want)
			}
		}
	}
	for text, want := range map[string]string{
		"Image=/none\n":      `there is no image at "/none"`,
		"Image=nothing\n":    `the configured image "nothing": no image is called`,
		"Image=docker:\n":    `the configuration is wrong: invalid image "docker:"`,
		"MachineImage=web\n": "the configuration is wrong: /etc/cntr/attach.conf: MachineImage=web is not PATTERN IMAGE",
	} {
		configure(text)
		if o := attachTo(t, slim, "true"); o.code != 125 || !strings.Contains(o.stderr, want) {
			t.Errorf("%q: %+v, want %q", text, o, want)
		}
		succeeds(t, "--image=host", slim, "true")
	}
}
