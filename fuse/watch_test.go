//go:build integration

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watching serves a tree of which only a change that is told can be seen: nothing is asked for again by itself.
//
// The test is the host as well, and the thread that changed something must not become a server thread before the event is handled: that
// is how the session's own changes are told.
func watching(t *testing.T, writable bool, names ...string) *served {
	t.Helper()
	runtime.LockOSThread()
	tree := files(t, names...)
	s := serve(t, tree, Options{Passthrough: true, Watch: Forever, Writable: writable, Cache: Cache{-1, -1, -1}})
	if s.FileSystem.tree.watcher.group < 0 {
		t.Fatal("there is no fanotify")
	}
	return s
}

// soon waits until the session sees what is wanted.
func soon(t *testing.T, what string, see func() string, want string) time.Duration {
	t.Helper()
	start := time.Now()
	for see() != want {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("%s: the session sees %q, want %q", what, see(), want)
		}
		runtime.Gosched()
	}
	return time.Since(start)
}

// TestHostChangesAreTold has the session remember for ever, and the host change what it remembers.
func TestHostChangesAreTold(t *testing.T) {
	for _, writable := range []bool{false, true} {
		t.Run(fmt.Sprintf("writable=%v", writable), func(t *testing.T) { testHostChangesAreTold(t, writable) })
	}
}

func testHostChangesAreTold(t *testing.T, writable bool) {
	s := watching(t, writable, "file", "gone", "other", "open", "sub/a", "moved/x/y", "mounted/inside")
	stat := func(name string) func() string {
		return func() string {
			var st unix.Stat_t
			if err := unix.Lstat(s.path(name), &st); err != nil {
				return err.Error()
			}
			return fmt.Sprintf("%o %d", st.Mode, st.Size)
		}
	}
	list := func(name string) func() string {
		return func() string {
			all, err := os.ReadDir(s.path(name))
			if err != nil {
				return err.Error()
			}
			var names []string
			for _, e := range all {
				names = append(names, e.Name())
			}
			return strings.Join(names, " ")
		}
	}
	open, err := os.Open(s.path("open"))
	must(t, err)
	defer open.Close()
	size := func() string {
		info, err := open.Stat()
		must(t, err)
		return fmt.Sprint(info.Size())
	}
	links := func() string {
		var st unix.Stat_t
		must(t, unix.Fstat(int(open.Fd()), &st))
		return fmt.Sprint(st.Nlink)
	}
	enoent := unix.ENOENT.Error()
	for _, c := range []struct {
		what   string
		see    func() string
		change func() error
		want   string
	}{
		{"a file is written", stat("file"), func() error { return os.WriteFile(s.host("file"), []byte("123456789"), 0) }, "100644 9"},
		{"a file's mode is changed", stat("file"), func() error { return os.Chmod(s.host("file"), 0o600) }, "100600 9"},
		{"an open file is written", size, func() error { return os.WriteFile(s.host("open"), []byte("12345"), 0) }, "5"},
		{"an open file is removed", links, func() error { return os.Remove(s.host("open")) }, "0"},
		{"a file is removed", stat("gone"), func() error { return os.Remove(s.host("gone")) }, enoent},
		{"a file is made", stat("new"), func() error { return os.WriteFile(s.host("new"), []byte("new"), 0o644) }, "100644 3"},
		{"a file is replaced", stat("file"), func() error { return os.Rename(s.host("new"), s.host("file")) }, "100644 3"},
		{"a file is made in a directory", list("sub"), func() error { return os.WriteFile(s.host("sub/b"), nil, 0o644) }, "a b"},
		{"a file is removed from a directory", list("sub"), func() error { return os.Remove(s.host("sub/a")) }, "b"},
		{"a directory is renamed", stat("moved/x/y"), func() error { return os.Rename(s.host("moved"), s.host("away")) }, enoent},
		{"what was made in a directory that was renamed", list("away/x"), func() error { return os.WriteFile(s.host("away/x/z"), nil, 0o644) }, "y z"},
		{"a directory's mode is changed", stat("sub"), func() error { return os.Chmod(s.host("sub"), 0o700) }, fmt.Sprintf("40700 %d", dirSize(t, s.host("sub")))},
		{"something is mounted", list("mounted"), func() error { return unix.Mount("tmpfs", s.host("mounted"), "tmpfs", 0, "") }, ""},
		{"and unmounted", list("mounted"), func() error { return unix.Unmount(s.host("mounted"), unix.MNT_DETACH) }, "inside"},
	} {
		for range 3 { // the kernel remembers
			c.see()
		}
		if c.see() == c.want {
			t.Errorf("%s: that was so before", c.what)
		}
		must(t, c.change())
		t.Logf("%s: seen after %v", c.what, soon(t, c.what, c.see, c.want))
	}
}

func dirSize(t *testing.T, path string) int64 {
	info, err := os.Stat(path)
	must(t, err)
	return info.Size()
}

// TestNothingIsAskedTwice counts requests for what did not change.
func TestNothingIsAskedTwice(t *testing.T) {
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("dir/f%d", i))
	}
	s := watching(t, false, names...)
	walk := func() {
		t.Helper()
		n := 0
		must(t, filepath.WalkDir(s.path("."), func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			_, err = e.Info()
			n++
			return err
		}))
		if n != 102 {
			t.Fatalf("%d entries", n)
		}
		if _, err := os.Lstat(s.path("dir/none")); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	for range 3 {
		walk()
	}
	before := s.Requests()
	walk()
	after := s.Requests()
	for _, kind := range []string{"LOOKUP", "GETATTR", "READDIR", "READDIRPLUS"} {
		if n := after[kind] - before[kind]; n != 0 {
			t.Errorf("%d %s for what was known", n, kind)
		}
	}
	if n := after["OPENDIR"] - before["OPENDIR"]; n != 0 {
		t.Errorf("%d OPENDIR", n)
	}
}

// TestOwnChangesAreKnown has the session change what it remembers. Its kernel knows that, and need not ask.
func TestOwnChangesAreKnown(t *testing.T) {
	s := watching(t, true, "dir/f", "dir/g")
	stat := func(name string) string {
		var st unix.Stat_t
		if err := unix.Lstat(s.path(name), &st); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%o %d", st.Mode, st.Size)
	}
	for range 3 {
		stat("dir/f")
		stat("dir/g")
		stat("dir/none")
	}
	must(t, os.Chmod(s.path("dir/f"), 0o600))
	must(t, os.Remove(s.path("dir/g")))
	before := s.Requests()
	if got := stat("dir/f"); !strings.HasPrefix(got, "100600 ") {
		t.Errorf("after chmod it is %s", got)
	}
	after := s.Requests()
	for kind, most := range map[string]uint64{"LOOKUP": 0, "GETATTR": 1} { // the answer may have crossed the event
		if n := after[kind] - before[kind]; n > most {
			t.Errorf("%d %s after a change of the session's own", n, kind)
		}
	}
	if got := stat("dir/g"); got != unix.ENOENT.Error() {
		t.Errorf("what was removed is %s", got)
	}
	must(t, os.WriteFile(s.path("dir/none"), []byte("12345"), 0o640))
	if got := stat("dir/none"); got != "100640 5" {
		t.Errorf("what was made is %s", got)
	}
}

// TestOwnChangesAreToldToTheOtherMount has the session change what is mounted twice. Its kernel knows only of where it did.
func TestOwnChangesAreToldToTheOtherMount(t *testing.T) {
	s := watching(t, true, "dir/f", "dir/g", "again/x")
	must(t, unix.Mount(s.host("dir"), s.host("again"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(s.host("again"), unix.MNT_DETACH) })
	see := func(name string) func() string {
		return func() string {
			info, err := os.Lstat(s.path(name))
			if err != nil {
				return "none"
			}
			return info.Mode().String()
		}
	}
	for range 3 {
		for _, name := range []string{"dir/f", "dir/g", "dir/h", "again/f", "again/g", "again/h"} {
			see(name)()
		}
	}
	must(t, os.Chmod(s.path("dir/f"), 0o600))
	must(t, os.Remove(s.path("dir/g")))
	must(t, os.Mkdir(s.path("dir/h"), 0o700))
	soon(t, "a change", see("again/f"), "-rw-------")
	soon(t, "what was removed", see("again/g"), "none")
	soon(t, "what was made", see("again/h"), "drwx------")
}

// TestWhatWasMovedIsWatchedWhereItIs has the session move what it remembers to where nobody watches, and the host change it there.
func TestWhatWasMovedIsWatchedWhereItIs(t *testing.T) {
	s := watching(t, true, "dir/f", "dir/g", "dir/sub/x", "busy/x", "busy/g")
	see := func(name string) func() string {
		return func() string {
			info, err := os.Lstat(s.path(name))
			if err != nil {
				return "none"
			}
			return fmt.Sprint(info.Size())
		}
	}
	for range 3 {
		for _, name := range []string{"dir/f", "dir/g", "dir/sub/x", "busy/x", "busy/g"} {
			see(name)()
		}
	}
	w := s.FileSystem.tree.watcher
	count := func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := 0
		for _, list := range w.dirs {
			for _, dir := range list {
				if dir.watching() {
					n++
				}
			}
		}
		return fmt.Sprint(n)
	}
	before := count()
	for i := range 3 * maxEvents {
		must(t, os.WriteFile(s.host(fmt.Sprintf("busy/f%d", i)), nil, 0o644))
	}
	if before != "4" {
		t.Errorf("%s directories are watched, want 4", before)
	}
	soon(t, "one is given up", count, "3")

	must(t, os.Rename(s.path("dir/f"), s.path("busy/moved")))
	must(t, unix.Renameat2(unix.AT_FDCWD, s.path("dir/g"), unix.AT_FDCWD, s.path("busy/g"), unix.RENAME_EXCHANGE))
	must(t, os.Rename(s.path("dir/sub"), s.path("busy/sub")))
	see("busy/moved")()
	see("busy/g")()
	see("busy/sub/x")()
	must(t, os.WriteFile(s.host("busy/moved"), []byte("12345"), 0o644))
	must(t, os.WriteFile(s.host("busy/g"), []byte("123456"), 0o644))
	must(t, os.WriteFile(s.host("dir/g"), []byte("1234567"), 0o644))
	must(t, os.WriteFile(s.host("busy/sub/x"), []byte("12345678"), 0o644))
	soon(t, "a file that was moved", see("busy/moved"), "5")
	soon(t, "a file that was exchanged", see("busy/g"), "6")
	soon(t, "the other one", see("dir/g"), "7")
	soon(t, "a file in a directory that was moved", see("busy/sub/x"), "8")
	must(t, os.Remove(s.host("busy/moved")))
	soon(t, "and removed", see("busy/moved"), "none")
}

// TestWhatCannotBeSeenIsAskedFor has changes that no directory that is watched tells of.
func TestWhatCannotBeSeenIsAskedFor(t *testing.T) {
	s := watching(t, false, "dir/f", "elsewhere/x")
	must(t, os.Link(s.host("dir/f"), s.host("elsewhere/f")))
	for range 3 {
		_, err := os.Lstat(s.path("dir/f"))
		must(t, err)
	}
	must(t, os.WriteFile(s.host("elsewhere/f"), []byte("12345678"), 0))
	soon(t, "a file with two names", func() string {
		info, err := os.Lstat(s.path("dir/f"))
		must(t, err)
		return fmt.Sprint(info.Size())
	}, "8")
}

// TestMarksAreGivenBack has the session's kernel forget directories.
func TestMarksAreGivenBack(t *testing.T) {
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("d%d/f", i))
	}
	s := watching(t, false, names...)
	marks := func() int {
		data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", s.FileSystem.tree.watcher.group))
		must(t, err)
		return strings.Count(string(data), "fanotify ino:")
	}
	for _, name := range names {
		_, err := os.Lstat(s.path(name))
		must(t, err)
	}
	if n := marks(); n != 51 {
		t.Errorf("%d marks, want 51", n)
	}
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	soon(t, "marks after the kernel forgot the directories", func() string { return fmt.Sprint(marks() < 5) }, "true")
}

// TestChangesAreSeenAtOnce measures how long it takes until a change is seen, of many.
func TestChangesAreSeenAtOnce(t *testing.T) {
	var names []string
	const dirs = 200 // in none of them so much goes on that it is given up
	for i := range dirs {
		names = append(names, fmt.Sprintf("d%d/f", i))
	}
	s := watching(t, false, names...)
	var took []time.Duration
	for i := range 10 * dirs {
		name := fmt.Sprintf("d%d/%s", i%dirs, []string{"f", "g"}[i/dirs%2])
		see := func() string {
			info, err := os.Lstat(s.path(name))
			if err != nil {
				return "none"
			}
			return fmt.Sprint(info.Size())
		}
		see()
		see()
		want := fmt.Sprint(i + 1)
		if i/dirs >= 8 {
			must(t, os.Remove(s.host(name)))
			want = "none"
		} else {
			must(t, os.WriteFile(s.host(name), make([]byte, i+1), 0o644))
		}
		took = append(took, soon(t, fmt.Sprintf("change %d of %s", i, name), see, want))
	}
	slices.Sort(took)
	t.Logf("seen after %v (median), %v (99%%), %v (all)", took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
}

// TestBusyDirectoryIsGivenUp has so much go on in a directory that it is not watched any more. What was told of it before must not be
// believed for ever.
func TestBusyDirectoryIsGivenUp(t *testing.T) {
	s := watching(t, false, "dir/old", "dir/sub/x")
	see := func(name string) func() string {
		return func() string {
			info, err := os.Lstat(s.path(name))
			if err != nil {
				return "none"
			}
			return fmt.Sprint(info.Size(), info.Mode().Perm())
		}
	}
	for range 3 {
		see("dir/old")()
		see("dir/none")()
		see("dir/sub")()
	}
	dir := func() bool {
		found := false
		w := s.FileSystem.tree.watcher
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, list := range w.dirs {
			for _, n := range list {
				found = found || n.watching() && len(n.watch.Load().misses) > 0
			}
		}
		return found
	}
	if !dir() {
		t.Fatal("the directory was not watched to begin with")
	}
	for i := range 10 * maxEvents {
		must(t, os.WriteFile(s.host(fmt.Sprintf("dir/f%d", i)), nil, 0o644))
	}
	soon(t, "the directory is given up", func() string { return fmt.Sprint(dir()) }, "false")
	must(t, os.WriteFile(s.host("dir/old"), []byte("123"), 0))
	must(t, os.WriteFile(s.host("dir/none"), []byte("12"), 0o600))
	must(t, os.Chmod(s.host("dir/sub"), 0o711))
	soon(t, "a file that was known", see("dir/old"), "3 -rw-r--r--")
	soon(t, "a file that was known not to be there", see("dir/none"), "2 -rw-------")
	soon(t, "a directory that was known", func() string { return see("dir/sub")()[len(see("dir/sub")())-10:] }, "-rwx--x--x")
}
