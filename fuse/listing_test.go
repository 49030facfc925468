//go:build integration

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openings are the two ways in which directories are read: opened, and unopened.
func openings(t *testing.T, f func(t *testing.T, o Options)) {
	t.Run("opened", func(t *testing.T) { f(t, Options{Allow: func(uint32) bool { return true }}) })
	t.Run("unopened", func(t *testing.T) { f(t, Options{}) })
}

func listNames(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(path)
	must(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestDirectoriesAreOpenedOnlyIfAsked looks at what reaches the server.
func TestDirectoriesAreOpenedOnlyIfAsked(t *testing.T) {
	openings(t, func(t *testing.T, o Options) {
		want := map[bool]uint64{true: 1, false: 10}[o.Allow == nil] // the first answer is for all
		s := serve(t, files(t, "dir/x"), o)
		for range 10 {
			listNames(t, s.path("dir"))
		}
		if n := s.Requests()["OPENDIR"]; n != want {
			t.Errorf("%d OPENDIR, want %d", n, want)
		}
		if n := s.Requests()["RELEASEDIR"]; o.Allow == nil && n != 0 {
			t.Errorf("%d RELEASEDIR", n)
		}
	})
}

// TestNamesAreDroppedInTime has the host add a name without the directory's time of change telling, as it is where two changes share
// a tick of the clock, or in a file system like sysfs.
func TestNamesAreDroppedInTime(t *testing.T) {
	for _, c := range []struct {
		what string
		o    Options
		most time.Duration
	}{
		{"not watched", Options{}, DefaultTimeout + 3*time.Second},
		{"watched", Options{Watch: WatchTimeout}, DefaultTimeout},
	} {
		t.Run(c.what, func(t *testing.T) {
			runtime.LockOSThread() // see watching
			defer runtime.UnlockOSThread()
			s := serve(t, files(t, "dir/x"), c.o)
			for range 3 {
				listNames(t, s.path("dir"))
			}
			info, err := os.Stat(s.host("dir"))
			must(t, err)
			must(t, os.WriteFile(s.host("dir/y"), nil, 0o644))
			must(t, os.Chtimes(s.host("dir"), info.ModTime(), info.ModTime()))
			begin := time.Now()
			for len(listNames(t, s.path("dir"))) != 2 {
				if time.Since(begin) > c.most {
					t.Fatalf("not seen after %v", c.most)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

// TestNamesAreReadAgain has what is watched read again before what is known of the entries expires: else each would be looked up.
func TestNamesAreReadAgain(t *testing.T) {
	const watch = 4 * time.Second // a list is dropped after three quarters of that, and up to a second
	s := serve(t, files(t, "dir/x", "dir/y"), Options{Watch: watch})
	see := func() {
		for _, name := range listNames(t, s.path("dir")) {
			_, err := os.Lstat(s.path("dir/" + name))
			must(t, err)
		}
	}
	see()
	see()
	before := s.Requests()
	for begin := time.Now(); time.Since(begin) < 2*watch; time.Sleep(50 * time.Millisecond) {
		see()
	}
	after := s.Requests()
	if n := after["READDIRPLUS"] - before["READDIRPLUS"]; n < 2 || n > 8 {
		t.Errorf("%d READDIRPLUS in %v, want 2 for each list, and a list for each %v", n, 2*watch, watch)
	}
	if n := after["LOOKUP"] - before["LOOKUP"]; n > 2 {
		t.Errorf("%d LOOKUP for entries of a directory that is listed", n)
	}
}

// TestManyReadDirectories reads directories of several pages at once, by more readers than the server keeps places for.
func TestManyReadDirectories(t *testing.T) {
	openings(t, func(t *testing.T, o Options) {
		tree := files(t)
		const dirs, entries, readers = 4, 3000, 2 * maxStreams
		for d := range dirs {
			must(t, os.Mkdir(filepath.Join(tree, fmt.Sprint(d)), 0o755))
			for i := range entries {
				must(t, os.Symlink("x", filepath.Join(tree, fmt.Sprint(d), fmt.Sprintf("%d-%d", d, i))))
			}
		}
		before := openFDs(t)
		s := serve(t, tree, o)
		var g sync.WaitGroup
		for r := range readers {
			g.Add(1)
			go func() {
				defer g.Done()
				f, err := os.Open(s.path(fmt.Sprint(r % dirs)))
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				var all []string
				for {
					part, err := f.Readdirnames(7) // package os reads 8 KiB at a time
					if err != nil {
						break
					}
					all = append(all, part...)
					if r%3 == 0 {
						time.Sleep(100 * time.Microsecond)
					}
				}
				slices.Sort(all)
				all = slices.Compact(all)
				if len(all) != entries || strings.SplitN(all[0], "-", 2)[0] != fmt.Sprint(r%dirs) {
					t.Errorf("reader %d: %d names", r, len(all))
				}
			}()
		}
		g.Wait()
		s.unmount(t)
		if n := openFDs(t); n > before {
			t.Errorf("%d descriptors are left open", n-before)
		}
	})
}

const nodump = 0x40 // FS_NODUMP_FL of linux/fs.h

// TestOpenDirectory does what can be done with the descriptor of a directory.
func TestOpenDirectory(t *testing.T) {
	openings(t, func(t *testing.T, o Options) {
		o.Writable = true
		s := serve(t, files(t, "dir/x", "gone/", "theirs/"), o)
		open := func(name string) *os.File {
			f, err := os.Open(s.path(name))
			must(t, err)
			t.Cleanup(func() { f.Close() })
			return f
		}
		dir := open("dir")
		must(t, dir.Sync())
		must(t, unix.Fdatasync(int(dir.Fd())))
		flags, err := unix.IoctlGetUint32(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
		must(t, err)
		must(t, unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, int(flags|nodump)))
		host, err := os.Open(s.host("dir"))
		must(t, err)
		defer host.Close()
		set, err := unix.IoctlGetUint32(int(host.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil || set != flags|nodump {
			t.Errorf("flags %#x, %v, want %#x", set, err, flags|nodump)
		}
		must(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
		must(t, unix.Fchmod(int(dir.Fd()), 0o711))
		if got := mode(t, s.host("dir")); got != mode(t, s.path("dir")) {
			t.Errorf("mode %s on the host", got)
		}
		must(t, os.WriteFile(s.path("dir/later"), nil, 0o644))
		if got, err := dir.Readdirnames(-1); err != nil || len(got) != 2 {
			t.Errorf("%q, %v", got, err)
		}
		_, err = dir.Seek(0, 0)
		must(t, err)
		must(t, os.Remove(s.path("dir/x")))
		if got, err := dir.Readdirnames(-1); err != nil || len(got) != 1 {
			t.Errorf("after rewinddir: %q, %v", got, err)
		}
		// As on any file system, a directory that is gone has no entries, and no error that a program would not expect.
		gone, theirs := open("gone"), open("theirs")
		must(t, os.Remove(s.path("gone")))
		must(t, os.Remove(s.host("theirs")))
		for _, f := range []*os.File{gone, theirs} {
			if got, err := f.Readdirnames(-1); len(got) != 0 || err != nil && !os.IsNotExist(err) {
				t.Errorf("%s, which is gone: %q, %v", f.Name(), got, err)
			}
		}
	})
}

// TestUnopenedAsksAllow has somebody refused who got past the guard: nothing new is given out.
func TestUnopenedAsksAllow(t *testing.T) {
	var refuse atomic.Bool
	s := serve(t, files(t, "known/x", "new/y"), Options{Guarded: true, Allow: func(uint32) bool { return !refuse.Load() }})
	listNames(t, s.path("known"))
	refuse.Store(true)
	f, err := os.Open(s.path("new"))
	must(t, err)
	defer f.Close()
	_, err = f.Readdirnames(-1)
	wantErr(t, "list", err, unix.EACCES)
	wantErr(t, "fsync", f.Sync(), unix.EACCES)
	_, err = unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	wantErr(t, "ioctl", err, unix.EACCES)
	_, err = os.ReadFile(s.path("known/x"))
	wantErr(t, "open", err, unix.EACCES)
}
