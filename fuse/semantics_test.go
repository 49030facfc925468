//go:build integration

package fuse

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// passthroughModes runs a test with and without passthrough.
func passthroughModes(t *testing.T, f func(t *testing.T, o Options)) {
	for _, pass := range []bool{false, true} {
		name := "through the server"
		if pass {
			name = "passthrough"
		}
		t.Run(name, func(t *testing.T) { f(t, Options{Writable: true, Passthrough: pass}) })
	}
}

func mode(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
}

// both runs the same steps on the mount and on a plain directory, and compares what they say and what files look like.
func both(t *testing.T, o Options, steps func(dir string) string) {
	t.Helper()
	plain := files(t)
	s := serve(t, files(t), o)
	must(t, os.Chmod(plain, 0o777))
	must(t, os.Chmod(s.tree, 0o777))
	want, got := steps(plain), steps(s.mnt)
	if got != want {
		t.Errorf("on the mount:\n%s\non a plain directory:\n%s", got, want)
	}
	if strings.TrimSpace(want) == "" {
		t.Error("nothing compared")
	}
}

func TestTmpfile(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t, "dir/"), o)
		fd, err := unix.Open(s.path("dir"), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		must(t, err)
		f := os.NewFile(uintptr(fd), "tmpfile")
		defer f.Close()
		_, err = f.WriteString("without a name")
		must(t, err)
		shell(t, `echo 2 >/proc/sys/vm/drop_caches`)
		must(t, f.Chmod(0o604))
		must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path("named"), unix.AT_SYMLINK_FOLLOW))
		wantContent(t, s.host("named"), "without a name")
		if got := mode(t, s.path("named")); got != "604 0:0" {
			t.Errorf("mode %s", got)
		}
		fd, err = unix.Open(s.path("dir"), unix.O_TMPFILE|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		must(t, err)
		defer unix.Close(fd)
		wantErr(t, "link of an exclusive one",
			unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path("x"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
	})
}

func TestRenameFlags(t *testing.T) {
	s := serve(t, files(t, "a", "b", "dir/x", "full/y"), Options{Writable: true})
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, s.path(from), unix.AT_FDCWD, s.path(to), flags)
	}
	wantErr(t, "NOREPLACE", rename("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, rename("a", "c", unix.RENAME_NOREPLACE))
	must(t, rename("c", "b", unix.RENAME_EXCHANGE))
	wantContent(t, s.path("b"), "a")
	wantContent(t, s.host("c"), "b")
	must(t, rename("c", "dir", unix.RENAME_EXCHANGE))
	wantContent(t, s.path("c/x"), "dir/x")
	wantErr(t, "WHITEOUT", rename("b", "w", unix.RENAME_WHITEOUT), unix.EINVAL)
	wantErr(t, "over a full directory", rename("c", "full", 0), unix.ENOTEMPTY)
	wantErr(t, "into itself", rename("c", "c/c", 0), unix.EINVAL)
	must(t, rename("b", "dir", 0))
	wantContent(t, s.path("dir"), "a")
}

// TestOpenUnlinkedFiles uses files that lost their name in each way there is.
func TestOpenUnlinkedFiles(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		o.Descriptors = 16
		s := serve(t, files(t, "unlinked", "replaced", "other", "dir/", "dir/sub/"), o)
		for _, name := range []string{"unlinked", "replaced"} {
			f, err := os.OpenFile(s.path(name), os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			if name == "unlinked" {
				must(t, os.Remove(s.path(name)))
			} else {
				must(t, os.Rename(s.path("other"), s.path(name)))
			}
			shell(t, `echo 2 >/proc/sys/vm/drop_caches; ls -lR "$1" >/dev/null`, s.mnt)
			must(t, unix.Fchmod(int(f.Fd()), 0o4711))
			must(t, f.Truncate(3))
			must(t, unix.Fsetxattr(int(f.Fd()), "user.x", []byte("y"), 0))
			var st unix.Stat_t
			must(t, unix.Fstat(int(f.Fd()), &st))
			if st.Nlink != 0 || st.Size != 3 || st.Mode != unix.S_IFREG|0o4711 {
				t.Errorf("%s: %+v", name, st)
			}
			if data, err := io.ReadAll(f); err != nil || string(data) != name[:3] {
				t.Errorf("%s reads %q, %v", name, data, err)
			}
		}
		dir, err := os.Open(s.path("dir/sub"))
		must(t, err)
		defer dir.Close()
		must(t, os.Remove(s.path("dir/sub")))
		_, err = dir.ReadDir(-1)
		wantErr(t, "list a directory that was removed", err, unix.ENOENT) // as everywhere
		var st unix.Stat_t
		must(t, unix.Fstat(int(dir.Fd()), &st))
		_, err = unix.Openat(int(dir.Fd()), "x", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		wantErr(t, "create in a directory that was removed", err, unix.ENOENT)
	})
}

func TestSparseFiles(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		both(t, o, func(dir string) string {
			var log strings.Builder
			f, err := os.Create(dir + "/f")
			must(t, err)
			defer f.Close()
			fd := int(f.Fd())
			must(t, f.Truncate(16<<20))
			_, err = f.WriteAt(make([]byte, 4096), 8<<20)
			must(t, err)
			stat := func(what string, err error) {
				var st unix.Stat_t
				must(t, f.Sync())
				must(t, unix.Fstat(fd, &st))
				fmt.Fprintln(&log, what, err, st.Size, st.Blocks)
			}
			stat("hole", nil)
			for _, off := range []int64{0, 4 << 20, 8 << 20, 8<<20 + 5000, 16 << 20, 17 << 20} {
				d, derr := unix.Seek(fd, off, unix.SEEK_DATA)
				h, herr := unix.Seek(fd, off, unix.SEEK_HOLE)
				fmt.Fprintln(&log, off, d, derr, h, herr)
			}
			stat("punch", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8<<20, 4096))
			stat("allocate", unix.Fallocate(fd, 0, 0, 1<<20))
			stat("keep size", unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 16<<20, 1<<20))
			stat("zero", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096))
			stat("nonsense", unix.Fallocate(fd, 0x4000, 0, 4096))
			return log.String()
		})
	})
}

func TestCopyFileRange(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t), o)
		data := make([]byte, 3<<20)
		for i := range data {
			data[i] = byte(i * 7 >> 3)
		}
		must(t, os.WriteFile(s.path("a"), data, 0o644))
		a, err := os.Open(s.path("a"))
		must(t, err)
		defer a.Close()
		b, err := os.Create(s.path("b"))
		must(t, err)
		defer b.Close()
		from, to := int64(1000), int64(500)
		for left := len(data) - 1000; left > 0; {
			n, err := unix.CopyFileRange(int(a.Fd()), &from, int(b.Fd()), &to, left, 0)
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			left -= n
		}
		wantContent(t, s.path("b"), string(make([]byte, 500))+string(data[1000:]))
		if n := s.Requests()["COPY_FILE_RANGE"]; n == 0 {
			t.Error("the kernel copied by itself")
		}
	})
}

func TestDirectIOAndAppend(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t, "log"), o)
		buf, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		must(t, err)
		defer unix.Munmap(buf)
		copy(buf, "direct")
		fd, err := unix.Open(s.path("d"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
		must(t, err)
		defer unix.Close(fd)
		if n, err := unix.Pwrite(fd, buf[:4096], 4096); n != 4096 || err != nil {
			t.Fatal(n, err)
		}
		clear(buf)
		if n, err := unix.Pread(fd, buf[:8192], 0); n != 8192 || err != nil || string(buf[4096:4102]) != "direct" {
			t.Fatal(n, err, buf[4096:4102])
		}
		wantContent(t, s.host("d"), string(buf))

		// Host and session append to one file at the same time.
		var wg sync.WaitGroup
		for i, path := range []string{s.path("log"), s.path("log"), s.host("log")} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				for j := range 200 {
					if _, err := fmt.Fprintf(f, "\n%d:%03d", i, j); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		wg.Wait()
		data, err := os.ReadFile(s.host("log"))
		must(t, err)
		if n := strings.Count(string(data), "\n"); n != 600 || len(data) != 3+600*6 {
			t.Errorf("%d lines, %d bytes", n, len(data))
		}
	})
}

func TestStatxBirthTime(t *testing.T) {
	s := serve(t, files(t, "f"), Options{})
	var want, got unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, s.host("f"), 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &want))
	must(t, unix.Statx(unix.AT_FDCWD, s.path("f"), 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &got))
	if got.Mask&unix.STATX_BTIME == 0 || got.Btime != want.Btime || got.Mtime != want.Mtime || got.Ino != want.Ino {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestFileSizeLimitIsTheCallers(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t, "f"), o)
		out := shell(t, `trap "" XFSZ; ulimit -f 8; dd if=/dev/zero of="$1" bs=1024 count=100 2>&1 | grep -o "File too large"; stat -c %s "$1"`, s.path("f"))
		if !strings.Contains(out, "File too large") || !(strings.Contains(out, "\n4096\n") || strings.Contains(out, "\n8192\n")) {
			t.Errorf("got %q", out)
		}
	})
}
