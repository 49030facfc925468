//go:build integration

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// loops returns the loop devices that are set up.
func loops(t *testing.T) []string {
	t.Helper()
	return glob(t, "/sys/block/loop*/loop/backing_file")
}

// smallTree makes a directory to make disk images of, with what a file system can have.
func smallTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	must(t, "sh", "-ec", `mkdir -p "$1/bin" "$1/dir"; cp /usr/bin/busybox "$1/bin/"; ln -s busybox "$1/bin/sh"; ln -s busybox "$1/bin/stat"
		ln -s busybox "$1/bin/cat"; ln -s busybox "$1/bin/ls"; ln -s busybox "$1/bin/touch"; ln -s busybox "$1/bin/sha256sum"
		cd "$1/dir"; echo data >file; ln file hard; ln -s file soft; mkfifo fifo; mknod null c 1 3; seq 100000 >large
		chown 7:8 file; chmod 4751 file; touch -d @1000000000 file; setfattr -n user.attr -v value file; seq -f f%g 1000 | xargs touch; rm f1`, "sh", dir)
	return dir
}

// The same tree in each type of file system is the same in a session.
func TestDiskImages(t *testing.T) {
	tree := smallTree(t)
	const look = `cd /dir; stat -c '%F %a %u:%g %h %Y %s' file; stat -c '%F %a %t,%T' null; cat hard soft; sha256sum large; ls | wc -l
		echo x >null || echo no device; touch new || echo read-only; [ -e f1 ] || echo gone`
	want := succeeds(t, "--image="+tree, slim, "sh", "-c", look)
	if strings.Count(want, "\n") != 9 {
		t.Fatalf("a directory says\n%s", want)
	}
	before := len(loops(t))
	for _, kind := range []string{"squashfs", "erofs", "ext4", "xfs", "btrfs", "gpt"} {
		t.Run(kind, func(t *testing.T) {
			image := "--image=" + diskImage(t, kind, tree)
			for _, machine := range []string{slim, userns} {
				o := attachTo(t, image, machine, "sh", "-c", look)
				if o.code != 0 || o.stdout != want {
					t.Errorf("%s: %+v, want %q", machine, o, want)
				}
			}
			if o := attachTo(t, image, "--writable", slim, "true"); o.code != 125 || !strings.Contains(o.stderr, "is read-only") {
				t.Errorf("--writable: %+v", o)
			}
		})
	}
	waitForNoScopes(t)
	if n := len(loops(t)); n != before {
		t.Errorf("%d loop devices are left of %d", n, before)
	}
}

// An image of a container with a user namespace, whose files have the ids that root gave to that, is one of root's and users'
// in a session.
func TestImageWithShiftedOwners(t *testing.T) {
	tree := smallTree(t)
	must(t, "sh", "-ec", `cd "$1"; find . -exec chown -h 100000:100000 {} +; chown 100007:100008 dir/file; chown 5:5 dir/null`, "sh", tree)
	for _, image := range []string{tree, diskImage(t, "squashfs", tree)} {
		for _, machine := range []string{slim, userns} {
			if got := succeeds(t, "--image="+image, machine, "stat", "-c", "%u:%g", "/", "/dir/file", "/dir/null"); got != "0:0\n7:8\n65534:65534\n" {
				t.Errorf("%s, %s: got %q", image, machine, got)
			}
		}
	}
}

// Sessions with the same image share one loop device, which goes with the last of them, also if that is killed.
func TestSessionsShareADiskImage(t *testing.T) {
	image := diskImage(t, "ext4", smallTree(t))
	before := len(loops(t))
	one := start(t, "--image="+image, slim, "sh", "-c", "echo ready; read end")
	two := start(t, "--image="+image, userns, "sh", "-c", "echo ready; read end; cat /dir/file")
	if one.line() != "ready" || two.line() != "ready" {
		t.Fatal("no sessions")
	}
	if n := len(loops(t)) - before; n != 1 {
		t.Errorf("two sessions have %d loop devices", n)
	}
	if mounts := string(readFile(t, "/proc/self/mountinfo")); strings.Contains(mounts, " - ext4 /dev/loop") {
		t.Errorf("the image is mounted where others see it:\n%s", mounts)
	}
	for _, scope := range scopes(t) {
		if strings.Contains(scope, slim) {
			must(t, "systemctl", "kill", "--signal=KILL", scope)
		}
	}
	one.exit(runTimeout)
	if _, err := two.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if line := two.line(); line != "data" {
		t.Errorf("the other session reads %q", line)
	}
	two.exit(runTimeout)
	waitForNoScopes(t)
	if n := len(loops(t)); n != before {
		t.Errorf("%d loop devices are left of %d", n, before)
	}
}

// What is no disk image, or a damaged one, is told so, and nothing is left of the attempt.
func TestDamagedDiskImages(t *testing.T) {
	dir, tree := t.TempDir(), t.TempDir()
	must(t, "cp", "/usr/bin/busybox", tree)
	before := len(loops(t))
	for _, c := range []struct{ name, kind, damage, want string }{
		{"text", "", `echo text >"$1"`, "neither a partition table nor a file system"},
		{"empty", "", `: >"$1"`, "neither a partition table nor a file system"},
		{"magic", "", `printf hsqs >"$1"`, "cannot be mounted as squashfs"},
		{"zeros", "", `printf hsqs >"$1"; truncate -s 1M "$1"`, "cannot be mounted as squashfs"},
		{"squashfs, cut", "squashfs", `truncate -s 100K "$1"`, "cannot be mounted as squashfs"},
		{"erofs, cut", "erofs", `truncate -s 2K "$1"`, "cannot be mounted as erofs"},
		{"ext4, cut", "ext4", `truncate -s 1M "$1"`, "cannot be mounted as ext4"},
		{"xfs, cut", "xfs", `truncate -s 1M "$1"`, "cannot be mounted as xfs"},
		{"btrfs, cut", "btrfs", `truncate -s 128K "$1"`, "cannot be mounted as btrfs"},
		{"ext4, scribbled over", "ext4", `dd if=/dev/urandom of="$1" bs=4096 seek=1 count=64 conv=notrunc status=none`, "cannot be mounted as ext4"},
		{"gpt, cut", "gpt", `truncate -s 1100K "$1"`, "it is cut off"},
		// What has something to be verified with is not used without; here is no device mapper.
		{"gpt, with hashes that are none", "gpt", `sfdisk --quiet --part-type "$1" 1 2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5`, "its verity data: it does not begin as such"},
		{"a root hash beside it", "squashfs", `echo 01 >"$1.roothash"`, "no verity data that it can be compared with"},
		{"hashes that nothing checks", "squashfs", `sha256sum <"$1" | cut -d ' ' -f 1 >"$1.roothash"
			printf 'verity\0\0\1\0\0\0\1\0\0\0%16ssha256' '' | cat - /dev/zero | head -c 64 >"$1.verity"
			printf '\0\20\0\0\0\20\0\0\1' | cat - /dev/zero | head -c 448 >>"$1.verity"`, "there is no device mapper here"},
		{"gpt, changed", "gpt", `printf x | dd of="$1" bs=1 seek=530 conv=notrunc status=none`, "the checksum of its partition table is wrong"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", ""))
			if c.kind != "" {
				must(t, "cp", diskImage(t, c.kind, tree), path)
			}
			must(t, "sh", "-ec", c.damage, "sh", path)
			if o := attachTo(t, "--image="+path, slim, "true"); o.code != 125 || !strings.Contains(o.stderr, c.want) {
				t.Errorf("%+v, want %q", o, c.want)
			}
		})
	}
	if n := len(loops(t)); n != before {
		t.Errorf("%d loop devices are left of %d", n, before)
	}
}

// The program of a machine with another libc, its shell and its libraries.
func TestImageOfAnotherLibc(t *testing.T) {
	const image = "/var/lib/testhost/musl"
	if got := must(t, "sh", "-c", "ls "+image+"/lib"); !strings.HasPrefix(got, "ld-musl-") {
		t.Fatalf("it has %q", got)
	}
	for _, machine := range machines {
		r := start(t, "--image="+image, machine, "sh", "-c", "cat /proc/self/comm; ls /usr 2>&1; exec slim")
		if got := r.line(); got != "cat" {
			t.Errorf("%s: got %q", machine, got)
		}
		r.line()
		// On the slim machine its own program has the port already; then this one says so and ends.
		if machine != slim {
			if got := r.line(); !strings.HasSuffix(got, "listening on 127.0.0.1:8080") {
				t.Errorf("%s: got %q: %s", machine, got, &r.stderr)
			}
		}
	}
	if _, err := os.Stat("/lib/ld-musl-x86_64.so.1"); err == nil {
		t.Error("the host has musl, too")
	}
}
