//go:build integration

package fuse

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadsTreeAsItIs(t *testing.T) {
	tree := files(t, "a", "dir/b", "dir/sub/", "link -> dir/b", "bad\xff\xfename")
	must(t, os.Chmod(filepath.Join(tree, "a"), 0o4751))
	must(t, os.Link(filepath.Join(tree, "a"), filepath.Join(tree, "dir/hard")))
	s := serve(t, tree, Options{})

	wantContent(t, s.path("a"), "a")
	wantContent(t, s.path("link"), "dir/b")
	wantContent(t, s.path("bad\xff\xfename"), "bad\xff\xfename")
	if target, err := os.Readlink(s.path("link")); err != nil || target != "dir/b" {
		t.Errorf("readlink: %q, %v", target, err)
	}
	compareTrees(t, s.tree, s.mnt)
	_, err := os.Stat(s.path("missing"))
	wantErr(t, "stat of a missing file", err, unix.ENOENT)
	_, err = os.Stat(s.path("a/b"))
	wantErr(t, "stat below a file", err, unix.ENOTDIR)
	_, err = os.Stat(s.path(".go-fuse-epoll-hack"))
	wantErr(t, "stat of go-fuse's own name", err, unix.ENOENT)
}

func TestReadOnlyRefusesEveryChange(t *testing.T) {
	tree := files(t, "a", "dir/", "link -> a")
	s := serve(t, tree, Options{})
	a := s.path("a")
	for what, err := range map[string]error{
		"create":   os.WriteFile(s.path("new"), nil, 0o644),
		"write":    os.WriteFile(a, nil, 0o644),
		"truncate": os.Truncate(a, 0),
		"chmod":    os.Chmod(a, 0o600),
		"chown":    os.Chown(a, 1, 1),
		"utimes":   unix.Utimes(a, []unix.Timeval{{}, {}}),
		"mkdir":    os.Mkdir(s.path("d"), 0o755),
		"rmdir":    unix.Rmdir(s.path("dir")),
		"unlink":   unix.Unlink(a),
		"rename":   os.Rename(a, s.path("b")),
		"symlink":  os.Symlink("x", s.path("s")),
		"link":     os.Link(a, s.path("h")),
		"mknod":    unix.Mknod(s.path("n"), unix.S_IFIFO|0o600, 0),
		"setxattr": unix.Setxattr(a, "user.x", []byte("y"), 0),
		"rmxattr":  unix.Removexattr(a, "user.x"),
	} {
		wantErr(t, what, err, unix.EROFS)
	}
	if out := shell(t, `find "$1" | sort`, tree); strings.Count(out, "\n") != 4 {
		t.Errorf("tree changed:\n%s", out)
	}
}

func TestWritableSession(t *testing.T) {
	s := serve(t, files(t), Options{Writable: true})
	a := s.path("a")
	must(t, os.WriteFile(a, []byte("hello"), 0o640))
	wantContent(t, s.host("a"), "hello")
	must(t, os.Mkdir(s.path("d"), 0o750))
	must(t, os.Rename(a, s.path("d/b")))
	wantContent(t, s.host("d/b"), "hello")
	must(t, os.Symlink("b", s.path("d/l")))
	wantContent(t, s.path("d/l"), "hello")
	must(t, os.Link(s.path("d/b"), s.path("d/h")))
	must(t, os.Truncate(s.path("d/h"), 2))
	wantContent(t, s.path("d/b"), "he")
	f, err := os.OpenFile(s.path("d/b"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("llo")
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	wantContent(t, s.path("d/l"), "hello")
	must(t, unix.Mknod(s.path("fifo"), unix.S_IFIFO|0o600, 0))
	must(t, unix.Mknod(s.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Chmod(s.path("d/b"), 0o4755))
	must(t, unix.Setxattr(s.path("d/b"), "user.x", []byte("value"), 0))
	buf := make([]byte, 100)
	n, err := unix.Getxattr(s.host("d/b"), "user.x", buf)
	if err != nil || string(buf[:n]) != "value" {
		t.Errorf("getxattr: %q, %v", buf[:n], err)
	}
	compareTrees(t, s.tree, s.mnt)
	must(t, os.Remove(s.path("d/l")))
	wantErr(t, "rmdir", unix.Rmdir(s.path("d")), unix.ENOTEMPTY)
	must(t, os.RemoveAll(s.path("d")))
	if _, err := os.Lstat(s.host("d")); err == nil {
		t.Error("d is still there")
	}
}

func TestExecutesAndMaps(t *testing.T) {
	tree := files(t, "dir/")
	for _, f := range []string{"/bin/cat", "/bin/sh"} {
		shell(t, `cp -L "$1" "$2"`, f, tree)
	}
	must(t, os.WriteFile(filepath.Join(tree, "script"), []byte("#!/bin/sh\necho from script $1\n"), 0o755))
	for _, pass := range []bool{false, true} {
		t.Run(fmt.Sprint("passthrough ", pass), func(t *testing.T) {
			s := serve(t, tree, Options{Passthrough: pass})
			if out := shell(t, `"$1/sh" -c 'echo one; "$1/script" two' sh "$1"; "$1/cat" "$1/script" | tail -1`, s.mnt); out !=
				"one\nfrom script two\necho from script $1\n" {
				t.Errorf("got %q", out)
			}
		})
	}
}

func TestExtraEntries(t *testing.T) {
	tree := files(t, "etc/passwd", "etc/group", "proc/x", "var/lib/dpkg", "run -> var", "usr/bin -> elsewhere")
	s := serve(t, tree, Options{Writable: true, Extra: map[string]Entry{
		"etc/passwd":   {Mode: unix.S_IFREG | 0o644, Content: []byte("root:x:0:0\n")},
		"proc":         {Mode: unix.S_IFDIR | 0o555},
		"var/lib/cntr": {Mode: unix.S_IFDIR | 0o755},
		"run/user":     {Mode: unix.S_IFDIR | 0o700},
		"new/deep/ln":  {Mode: unix.S_IFLNK | 0o777, Target: "../up"},
	}})
	wantContent(t, s.path("etc/passwd"), "root:x:0:0\n")
	wantContent(t, s.path("etc/group"), "etc/group")
	wantContent(t, s.path("var/lib/dpkg"), "var/lib/dpkg")
	if target, err := os.Readlink(s.path("new/deep/ln")); err != nil || target != "../up" {
		t.Errorf("readlink: %q, %v", target, err)
	}
	for dir, want := range map[string]string{
		"": "etc new proc run usr var", "etc": "group passwd", "proc": "", "var/lib": "cntr dpkg", "run": "user",
		"new": "deep", "new/deep": "ln",
	} {
		var names []string
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		sort.Strings(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q lists %q, want %q", dir, got, want)
		}
	}
	wantErr(t, "write to a made-up file", os.WriteFile(s.path("etc/passwd"), nil, 0), unix.EROFS)
	wantErr(t, "unlink of a made-up file", os.Remove(s.path("etc/passwd")), unix.EBUSY)
	wantErr(t, "rename over a made-up file", os.Rename(s.path("etc/group"), s.path("etc/passwd")), unix.EBUSY)
	wantErr(t, "rename of a parent", os.Rename(s.path("var"), s.path("moved")), unix.EBUSY)
	wantErr(t, "create below a made-up directory", os.WriteFile(s.path("proc/new"), nil, 0o644), unix.EROFS)
	wantErr(t, "mkdir of a made-up directory", os.Mkdir(s.path("proc"), 0o755), unix.EEXIST)
	must(t, os.WriteFile(s.path("var/lib/real"), []byte("x"), 0o644))
	wantContent(t, s.host("etc/passwd"), "etc/passwd")
	if info, err := os.Stat(s.path("run/user")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("run/user: %v, %v", info, err)
	}
	// A mount over a made-up entry survives what the host does to the real one.
	must(t, unix.Mount(s.host("etc/group"), s.path("etc/passwd"), "", unix.MS_BIND, ""))
	must(t, os.WriteFile(s.host("etc/passwd+"), []byte("new"), 0o644))
	must(t, os.Rename(s.host("etc/passwd+"), s.host("etc/passwd")))
	shell(t, `echo 2 >/proc/sys/vm/drop_caches`)
	wantContent(t, s.path("etc/passwd"), "etc/group")
	must(t, unix.Unmount(s.path("etc/passwd"), 0))
}

func TestExtraRefusesNonsense(t *testing.T) {
	root, err := os.Open(t.TempDir())
	must(t, err)
	defer root.Close()
	dir := Entry{Mode: unix.S_IFDIR | 0o755}
	for path, e := range map[string]Entry{"/abs": dir, "": dir, "a//b": dir, "a/../b": dir, "fifo": {Mode: unix.S_IFIFO}, "a/": dir} {
		if _, err := New(Options{Root: root, Extra: map[string]Entry{path: e}}); err == nil {
			t.Errorf("entry %q, mode %#o was taken", path, e.Mode)
		}
	}
	file := Entry{Mode: unix.S_IFREG | 0o644}
	if _, err := New(Options{Root: root, Extra: map[string]Entry{"f": file, "f/x": file}}); err == nil {
		t.Error("an entry below a file was taken")
	}
}

func TestIDMap(t *testing.T) {
	tree := files(t, "root", "user", "unmapped", "dir/")
	must(t, os.Chown(filepath.Join(tree, "user"), 1000, 100))
	must(t, os.Chown(filepath.Join(tree, "unmapped"), 70000, 70000))
	must(t, os.Chmod(filepath.Join(tree, "dir"), 0o777))
	ranges := []IDRange{{Tree: 0, Session: 524288, Count: 65534}, {Tree: 100000, Session: 0, Count: 10}}
	s := serve(t, tree, Options{Writable: true, IDs: IDMap{UID: ranges, GID: ranges}})
	owner := func(path string) string {
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		return fmt.Sprint(st.Uid, ":", st.Gid)
	}
	for name, want := range map[string]string{"root": "524288:524288", "user": "525288:524388", "unmapped": "65534:65534"} {
		if got := owner(s.path(name)); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
	}
	must(t, os.WriteFile(s.path("dir/new"), nil, 0o644)) // by 0:0 of the session
	if got := owner(s.host("dir/new")); got != "100000:100000" {
		t.Errorf("new file belongs to %s", got)
	}
	must(t, os.Chown(s.path("dir/new"), 524288+5, 524288+6))
	if got := owner(s.host("dir/new")); got != "5:6" {
		t.Errorf("after chown: %s", got)
	}
	wantErr(t, "chown to an id without mapping", os.Chown(s.path("dir/new"), 77, -1), unix.EOVERFLOW)
	asUser(t, 77, 77, nil, func() {
		wantErr(t, "create by an id without mapping", os.WriteFile(s.path("dir/x"), nil, 0o644), unix.EOVERFLOW)
		wantErr(t, "mkdir by an id without mapping", os.Mkdir(s.path("dir/x"), 0o755), unix.EOVERFLOW)
	})
	asUser(t, 525288, 524388, nil, func() {
		must(t, os.WriteFile(s.path("dir/mine"), nil, 0o600))
		must(t, os.WriteFile(s.path("user"), []byte("changed"), 0o600))
		wantErr(t, "write to root's file", os.WriteFile(s.path("root"), nil, 0o600), unix.EACCES)
	})
	if got := owner(s.host("dir/mine")); got != "1000:100" {
		t.Errorf("the user's file belongs to %s", got)
	}
	_, err := New(Options{IDs: IDMap{UID: []IDRange{{0, 0, 10}, {5, 100, 10}}}})
	if err == nil {
		t.Error("overlapping ranges were taken")
	}
}

func TestAllowIsAsked(t *testing.T) {
	tree := files(t, "f", "dir/x", "link -> f")
	var refuse atomic.Bool
	var asked atomic.Uint32
	s := serve(t, tree, Options{Writable: true, Allow: func(tid uint32) bool {
		asked.Store(tid)
		return !refuse.Load()
	}})
	wantContent(t, s.path("f"), "f")
	if asked.Load() == 0 {
		t.Fatal("was not asked")
	}
	refuse.Store(true)
	_, err := os.ReadFile(s.path("f"))
	wantErr(t, "open", err, unix.EACCES)
	_, err = os.ReadDir(s.path("dir"))
	wantErr(t, "opendir", err, unix.EACCES)
	wantErr(t, "create", os.WriteFile(s.path("new"), nil, 0o644), unix.EACCES)
	wantErr(t, "unlink", os.Remove(s.path("f")), unix.EACCES)
	wantErr(t, "chmod", os.Chmod(s.path("f"), 0), unix.EACCES)
	wantErr(t, "setxattr", unix.Setxattr(s.path("f"), "user.x", nil, 0), unix.EACCES)
	_, err = unix.Getxattr(s.path("f"), "user.x", nil)
	wantErr(t, "getxattr", err, unix.EACCES)
}

func TestNoDescriptorIsLeaked(t *testing.T) {
	tree := files(t)
	for i := range 300 {
		must(t, os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), []byte("x"), 0o644))
	}
	before := openFDs(t)
	s := serve(t, tree, Options{Writable: true, Descriptors: 20})
	for range 3 {
		compareTrees(t, s.tree, s.mnt)
		shell(t, `cat "$1"/* >/dev/null; ls -lR "$1" >/dev/null`, s.mnt)
	}
	if n := openFDs(t); n > before+20+10 {
		t.Errorf("%d descriptors are open, %d were before: the limit of 20 does not hold", n, before)
	}
	for i := range 100 {
		must(t, os.Remove(s.path(fmt.Sprint(i))))
	}
	s.unmount(t)
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors are open, %d were before:\n%s", n, before, shell(t, `ls -l /proc/$PPID/fd`))
	}
}

func TestRenamesAndUnlinksByTheHost(t *testing.T) {
	tree := files(t, "dir/a", "dir/b", "open")
	s := serve(t, tree, Options{Writable: true, Cache: Cache{Entry: -1, Attr: -1, Negative: -1}})
	dir, err := os.Open(s.path("dir"))
	must(t, err)
	defer dir.Close()
	f, err := os.Open(s.path("open"))
	must(t, err)
	defer f.Close()
	must(t, os.Rename(s.host("dir"), s.host("moved")))
	must(t, os.Mkdir(s.host("dir"), 0o755))
	must(t, os.WriteFile(s.host("dir/a"), []byte("other"), 0o644))
	// The directory that is held is the one that it was.
	fd, err := unix.Openat(int(dir.Fd()), "a", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	buf := make([]byte, 10)
	n, err := unix.Read(fd, buf)
	unix.Close(fd)
	if err != nil || string(buf[:n]) != "dir/a" {
		t.Errorf("read %q, %v in the held directory", buf[:n], err)
	}
	wantContent(t, s.path("dir/a"), "other")
	wantContent(t, s.path("moved/a"), "dir/a")
	must(t, os.Remove(s.host("open")))
	if info, err := f.Stat(); err != nil || info.Size() != 4 {
		t.Errorf("fstat of a file that the host removed: %v", err)
	}
	if data, err := io.ReadAll(f); err != nil || string(data) != "open" {
		t.Errorf("read of a file that the host removed: %q, %v", data, err)
	}
}

// compareTrees compares what can be seen of two trees.
func compareTrees(t testing.TB, a, b string) {
	t.Helper()
	seen := listTree(t, b)
	for path, want := range listTree(t, a) {
		if got := seen[path]; got != want {
			t.Errorf("%s:\n got %s\nwant %s", path, got, want)
		}
		delete(seen, path)
	}
	for path := range seen {
		t.Errorf("%s is not in %s", path, a)
	}
}

// listTree describes each file below a directory.
func listTree(t testing.TB, root string) map[string]string {
	t.Helper()
	list := make(map[string]string)
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%o %d:%d nlink %d rdev %x ino %d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev,
			st.Ino, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " size %d sum %x", st.Size, checksum(data))
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %q", target)
		}
		list[rel] = b.String()
		return nil
	})
	if err != nil {
		t.Errorf("walk %s: %v", root, err)
	}
	return list
}

func checksum(data []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range data {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// TestHostChangesAreSeenInTime measures how long the session sees the old state after the host changed something: never
// longer than Options.Cache says, and at once after an open.
func TestHostChangesAreSeenInTime(t *testing.T) {
	const bound = 300 * time.Millisecond
	for _, pass := range []bool{false, true} {
		s := serve(t, files(t, "grows", "goes", "swapped", "other"), Options{
			Passthrough: pass, Cache: Cache{bound, bound, bound},
		})
		size := func(name string) int64 {
			info, err := os.Lstat(s.path(name))
			if err != nil {
				return -1
			}
			return info.Size()
		}
		for _, c := range []struct {
			what, name string
			want       int64
			change     func() error
		}{
			{"a file is written", "grows", 9, func() error { return os.WriteFile(s.host("grows"), []byte("123456789"), 0o644) }},
			{"a file is removed", "goes", -1, func() error { return os.Remove(s.host("goes")) }},
			{"a file is made", "new", 3, func() error { return os.WriteFile(s.host("new"), []byte("new"), 0o644) }},
			{"a file is replaced", "swapped", 5, func() error { return os.Rename(s.host("other"), s.host("swapped")) }},
		} {
			size(c.name) // the kernel remembers
			must(t, c.change())
			start := time.Now()
			for size(c.name) != c.want {
				if time.Since(start) > 10*bound {
					break
				}
				runtime.Gosched()
			}
			if d := time.Since(start); d > bound+200*time.Millisecond {
				t.Errorf("passthrough %v: %s: seen after %v", pass, c.what, d)
			}
		}
		// The content at the next open, also if the size is the same.
		wantContent(t, s.path("grows"), "123456789")
		must(t, os.WriteFile(s.host("grows"), []byte("987654321"), 0o644))
		wantContent(t, s.path("grows"), "987654321")
	}
}
