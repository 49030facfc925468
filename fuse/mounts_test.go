//go:build integration

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHandlesInTheSession(t *testing.T) {
	// A descriptor in the cache would keep the removed file alive.
	s := serve(t, files(t, "dir/sub/f", "gone"), Options{Writable: true, Descriptors: 1})
	mnt, err := unix.Open(s.mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(mnt)
	take := func(name string) unix.FileHandle {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, s.path(name), 0)
		must(t, err)
		return h
	}
	f, dir, gone := take("dir/sub/f"), take("dir/sub"), take("gone")
	must(t, os.Remove(s.host("gone")))
	for range 2 {
		shell(t, `echo 2 >/proc/sys/vm/drop_caches`) // the kernel forgets the inodes
		fd, err := unix.OpenByHandleAt(mnt, f, unix.O_RDONLY)
		must(t, err)
		buf := make([]byte, 20)
		n, err := unix.Read(fd, buf)
		unix.Close(fd)
		if err != nil || string(buf[:n]) != "dir/sub/f" {
			t.Errorf("read %q, %v", buf[:max(n, 0)], err)
		}
		fd, err = unix.OpenByHandleAt(mnt, dir, unix.O_RDONLY|unix.O_DIRECTORY)
		must(t, err)
		unix.Close(fd)
	}
	_, err = unix.OpenByHandleAt(mnt, gone, unix.O_RDONLY)
	wantErr(t, "handle of a removed file", err, unix.ESTALE)
}

// TestMountPoints has another file system mounted in the tree, and one without file handles.
func TestMountPoints(t *testing.T) {
	tree := files(t, "a", "sub/hidden", "proc/hidden", "over/hidden", "lower/low", "upper/", "work/")
	must(t, unix.Mount("tmpfs", tree+"/sub", "tmpfs", 0, "mode=755"))
	must(t, unix.Mount("proc", tree+"/proc", "proc", 0, ""))
	must(t, unix.Mount("overlay", tree+"/over", "overlay", 0,
		fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", tree, tree, tree)))
	t.Cleanup(func() {
		for _, dir := range []string{"sub", "proc", "over"} {
			must(t, unix.Unmount(tree+"/"+dir, 0))
		}
	})
	must(t, os.WriteFile(tree+"/sub/x", []byte("on tmpfs"), 0o644))
	s := serve(t, tree, Options{Writable: true, Passthrough: true})
	wantContent(t, s.path("sub/x"), "on tmpfs")
	wantContent(t, s.path("over/low"), "lower/low")
	must(t, os.WriteFile(s.path("over/new"), []byte("on overlay"), 0o644))
	must(t, os.Rename(s.path("over/new"), s.path("over/new2")))
	wantContent(t, s.host("over/new2"), "on overlay")
	f, err := os.OpenFile(s.path("over/low"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, os.Remove(s.path("over/low")))
	must(t, f.Truncate(3))
	if entries, err := os.ReadDir(s.path("proc")); err != nil || len(entries) != 0 {
		t.Errorf("proc lists %v, %v", entries, err)
	}
	_, err = os.Stat(s.path("proc/self"))
	wantErr(t, "stat below procfs", err, unix.ENOENT)
	wantErr(t, "rename between mounts", os.Rename(s.path("a"), s.path("sub/a")), unix.EXDEV)
	wantErr(t, "link between mounts", os.Link(s.path("a"), s.path("sub/a")), unix.EXDEV)
	wantErr(t, "rmdir of a mount point", unix.Rmdir(s.path("sub")), unix.EBUSY)
	var root, sub, stfs, hostfs unix.Stat_t
	must(t, unix.Stat(s.mnt, &root))
	must(t, unix.Stat(s.path("sub"), &sub))
	must(t, unix.Stat(s.host(), &stfs))
	must(t, unix.Stat(s.host("sub"), &hostfs))
	if root.Ino != stfs.Ino || sub.Ino == hostfs.Ino || sub.Dev != root.Dev {
		t.Errorf("inode numbers: root %d of %d, sub %#x of %#x", root.Ino, stfs.Ino, sub.Ino, hostfs.Ino)
	}
	f.Close()
	s.unmount(t)
}

// TestTreeContainsItsOwnMount has the mount point below the root of the tree.
func TestTreeContainsItsOwnMount(t *testing.T) {
	s := serve(t, "/", Options{})
	_, err := os.Stat(s.path(s.mnt))
	wantErr(t, "stat of our own mount in our own mount", err, unix.ELOOP)
	if out := shell(t, `ls "$1"`, s.path(filepath.Dir(s.mnt))); !strings.Contains(out, filepath.Base(s.mnt)) {
		t.Errorf("not listed: %q", out)
	}
	s.unmount(t)
}

// TestManyOpenFiles checks that nothing is lost when there are no descriptors left.
func TestManyOpenFiles(t *testing.T) {
	s := serve(t, files(t, "f", "dir/g"), Options{Descriptors: 16})
	var lim, low syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim))
	low = lim
	low.Cur = uint64(openFDs(t) + 40)
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low))
	defer func() { must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)) }()
	var open []*os.File
	var err error
	for err == nil {
		var f *os.File
		if f, err = os.Open(s.path("f")); err == nil {
			open = append(open, f)
		}
	}
	wantErr(t, "open", err, unix.EMFILE)
	for _, f := range open {
		f.Close()
	}
	wantContent(t, s.path("dir/g"), "dir/g")
}
