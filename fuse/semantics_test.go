package fuse

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

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

func TestSetIDBitsAreCleared(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		both(t, o, func(dir string) string {
			var log strings.Builder
			for i, what := range []string{"write", "append", "truncate", "ftruncate", "open O_TRUNC", "chown", "fallocate", "root write", "root chown"} {
				for _, bits := range []uint32{0o6777, 0o2767, 0o4755 | 0o22} {
					path := fmt.Sprintf("%s/f%d-%o", dir, i, bits)
					// Made without an open file, which could still be open in passthrough mode for the server.
					must(t, unix.Mknod(path, unix.S_IFREG|0o644, 0))
					must(t, unix.Truncate(path, 7))
					must(t, os.Chown(path, 0, 100))
					must(t, unix.Chmod(path, bits))
					act := func() {
						var err error
						switch what {
						case "write", "append", "root write":
							flags := os.O_WRONLY
							if what == "append" {
								flags |= os.O_APPEND
							}
							var f *os.File
							if f, err = os.OpenFile(path, flags, 0); err == nil {
								_, err = f.WriteString("x")
								f.Close()
							}
						case "truncate":
							err = unix.Truncate(path, 3)
						case "ftruncate", "fallocate":
							var f *os.File
							if f, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
								if what == "ftruncate" {
									err = f.Truncate(2)
								} else {
									err = unix.Fallocate(int(f.Fd()), 0, 0, 8192)
								}
								f.Close()
							}
						case "open O_TRUNC":
							var f *os.File
							if f, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0); err == nil {
								f.Close()
							}
						case "chown", "root chown":
							err = unix.Lchown(path, 1234, -1)
						}
						fmt.Fprintf(&log, "%s %o: %v, ", what, bits, err)
					}
					if strings.HasPrefix(what, "root") {
						act()
					} else {
						asUser(t, 1000, 1000, nil, act)
					}
					fmt.Fprintln(&log, mode(t, path))
				}
			}
			return log.String()
		})
	})
}

func TestOwnersAndModesOfNewFiles(t *testing.T) {
	both(t, Options{Writable: true}, func(dir string) string {
		var log strings.Builder
		must(t, os.Mkdir(dir+"/setgid", 0o777))
		must(t, os.Chown(dir+"/setgid", 0, 500))
		must(t, unix.Chmod(dir+"/setgid", 0o2777))
		must(t, os.Mkdir(dir+"/plain", 0o777))
		must(t, unix.Chmod(dir+"/plain", 0o777))
		for _, umask := range []int{0, 0o022, 0o077} {
			for _, groups := range [][]uint32{nil, {500}} {
				asUser(t, 1000, 1001, groups, func() {
					must(t, unix.Unshare(unix.CLONE_FS))
					unix.Umask(umask)
					for _, parent := range []string{"setgid", "plain"} {
						base := fmt.Sprintf("%s/%s/%o-%d-", dir, parent, umask, len(groups))
						fd, err := unix.Open(base+"f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o6777)
						if err == nil {
							unix.Close(fd)
						}
						errs := []error{
							err,
							unix.Mkdir(base+"d", 0o1777),
							unix.Mknod(base+"p", unix.S_IFIFO|0o666, 0),
							unix.Mknod(base+"r", unix.S_IFREG|0o2775, 0),
							unix.Symlink("x", base+"l"),
						}
						fmt.Fprint(&log, parent, " ", umask, groups, errs, ": ")
						for _, kind := range []string{"f", "d", "p", "r", "l"} {
							fmt.Fprint(&log, mode(t, base+kind), ", ")
						}
						fmt.Fprintln(&log)
					}
				})
			}
		}
		return log.String()
	})
}

// acl makes the value of a POSIX ACL attribute of tag, permissions and id.
func acl(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = append(b, byte(e[0]), byte(e[0]>>8), byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return b
}

const noID = 0xffffffff

func TestPOSIXACLs(t *testing.T) {
	get := func(path, name string) string {
		buf := make([]byte, 200)
		n, err := unix.Getxattr(path, name, buf)
		return fmt.Sprintf("%x %v", buf[:max(n, 0)], err)
	}
	forUser := acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, 1000}, [3]uint32{4, 0, noID}, [3]uint32{8, 6, 600}, [3]uint32{0x10, 6, noID}, [3]uint32{0x20, 0, noID})
	both(t, Options{Writable: true}, func(dir string) string {
		var log strings.Builder
		must(t, os.WriteFile(dir+"/f", []byte("x"), 0o600))
		must(t, unix.Setxattr(dir+"/f", aclAccess, forUser, 0))
		must(t, os.Mkdir(dir+"/d", 0o777))
		must(t, unix.Chmod(dir+"/d", 0o777))
		must(t, unix.Setxattr(dir+"/d", aclDefault, forUser, 0))
		fmt.Fprintln(&log, mode(t, dir+"/f"), get(dir+"/f", aclAccess))
		for _, who := range []struct {
			uid    uint32
			groups []uint32
		}{{1000, nil}, {1001, nil}, {1001, []uint32{600}}} {
			asUser(t, who.uid, who.uid, who.groups, func() {
				_, err := os.ReadFile(dir + "/f")
				fd, werr := unix.Open(dir+"/f", unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if werr == nil {
					unix.Close(fd)
				}
				fmt.Fprintln(&log, who, errors.Unwrap(orNil(err)), werr)
				name := fmt.Sprintf("%s/d/%d-%d", dir, who.uid, len(who.groups))
				must(t, os.WriteFile(name, nil, 0o666))
				must(t, os.Mkdir(name+"d", 0o777))
				fmt.Fprintln(&log, mode(t, name), get(name, aclAccess), mode(t, name+"d"), get(name+"d", aclDefault))
			})
		}
		// Setting an ACL as one who is not in the file's group takes the set-gid bit.
		must(t, os.WriteFile(dir+"/g", nil, 0o600))
		must(t, os.Chown(dir+"/g", 1000, 600))
		must(t, unix.Chmod(dir+"/g", 0o2770))
		asUser(t, 1000, 1000, nil, func() {
			fmt.Fprintln(&log, unix.Setxattr(dir+"/g", aclAccess, forUser, 0), mode(t, dir+"/g"))
		})
		must(t, os.Chmod(dir+"/f", 0o640))
		fmt.Fprintln(&log, get(dir+"/f", aclAccess), unix.Removexattr(dir+"/f", aclAccess), mode(t, dir+"/f"))
		return log.String()
	})
}

func orNil(err error) error {
	if err == nil {
		return fmt.Errorf("%w", errors.New("ok"))
	}
	return err
}

func TestACLsAreMapped(t *testing.T) {
	ranges := []IDRange{{Tree: 0, Session: 100000, Count: 1000}}
	s := serve(t, files(t, "f"), Options{Writable: true, IDs: IDMap{UID: ranges, GID: ranges}})
	e := func(user, group uint32) []byte {
		return acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, user}, [3]uint32{4, 0, noID}, [3]uint32{8, 6, group}, [3]uint32{0x10, 6, noID}, [3]uint32{0x20, 0, noID})
	}
	buf := make([]byte, 100)
	must(t, unix.Setxattr(s.host("f"), aclAccess, e(7, 8), 0))
	n, err := unix.Getxattr(s.path("f"), aclAccess, buf)
	if err != nil || string(buf[:n]) != string(e(100007, 100008)) {
		t.Errorf("the session sees %x, %v", buf[:max(n, 0)], err)
	}
	must(t, unix.Setxattr(s.path("f"), aclAccess, e(100009, 100010), 0))
	n, err = unix.Getxattr(s.host("f"), aclAccess, buf)
	if err != nil || string(buf[:n]) != string(e(9, 10)) {
		t.Errorf("the host sees %x, %v", buf[:max(n, 0)], err)
	}
	wantErr(t, "ACL for an id without mapping", unix.Setxattr(s.path("f"), aclAccess, e(9, 10), 0), unix.EOVERFLOW)
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

func TestFileLocks(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t, "f"), o)
		open := func(path string) *os.File {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			t.Cleanup(func() { f.Close() })
			return f
		}
		lock := func(f *os.File, cmd int, typ int16, start, size int64) error {
			lk := unix.Flock_t{Type: typ, Start: start, Len: size}
			return unix.FcntlFlock(f.Fd(), cmd, &lk)
		}
		held := func(f *os.File, start int64) bool {
			lk := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: 1}
			must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk))
			return lk.Type != unix.F_UNLCK
		}
		host, a, b := open(s.host("f")), open(s.path("f")), open(s.path("f"))

		t.Run("host and session exclude one another", func(t *testing.T) {
			must(t, lock(a, unix.F_SETLK, unix.F_WRLCK, 0, 10))
			wantErr(t, "host", lock(host, unix.F_OFD_SETLK, unix.F_WRLCK, 5, 1), unix.EAGAIN)
			must(t, lock(host, unix.F_OFD_SETLK, unix.F_WRLCK, 20, 0))
			wantErr(t, "session", lock(a, unix.F_SETLK, unix.F_RDLCK, 30, 1), unix.EAGAIN)
			must(t, lock(a, unix.F_SETLK, unix.F_UNLCK, 0, 5))
			if held(host, 4) || !held(host, 5) {
				t.Error("wrong range is held")
			}
			must(t, lock(host, unix.F_OFD_SETLK, unix.F_UNLCK, 0, 0))
		})
		t.Run("open file description locks of one process", func(t *testing.T) {
			must(t, lock(a, unix.F_OFD_SETLK, unix.F_RDLCK, 100, 10))
			must(t, lock(b, unix.F_OFD_SETLK, unix.F_RDLCK, 100, 10))
			wantErr(t, "upgrade", lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 105, 1), unix.EAGAIN)
			must(t, lock(a, unix.F_OFD_SETLK, unix.F_UNLCK, 100, 10))
			must(t, lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 105, 1))
			must(t, lock(b, unix.F_OFD_SETLK, unix.F_UNLCK, 0, 0))
		})
		t.Run("close drops the locks of a process", func(t *testing.T) {
			must(t, lock(a, unix.F_SETLK, unix.F_WRLCK, 200, 1))
			c := open(s.path("f"))
			if !held(host, 200) {
				t.Error("not held")
			}
			must(t, c.Close())
			if held(host, 200) {
				t.Error("still held after close of another descriptor")
			}
		})
		t.Run("waiting ends with the lock or with a signal", func(t *testing.T) {
			must(t, lock(host, unix.F_OFD_SETLK, unix.F_WRLCK, 300, 1))
			var wg sync.WaitGroup
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := retry(func() error { return lock(a, unix.F_OFD_SETLKW, unix.F_WRLCK, 300, 1) }); err != nil {
					t.Error(err)
				}
			}()
			// Killed while it waits: its wait must end, and not take the lock.
			shell(t, `timeout -s KILL 0.2 perl -MFcntl -e 'open F, "+<", $ARGV[0]; fcntl F, F_SETLKW, pack "ssx4qqi", F_WRLCK, 0, 300, 1, 0' "$1"; true`, s.path("f"))
			must(t, lock(host, unix.F_OFD_SETLK, unix.F_UNLCK, 300, 1))
			wg.Wait()
			if !held(host, 300) {
				t.Error("the waiter has no lock")
			}
			must(t, lock(a, unix.F_OFD_SETLK, unix.F_UNLCK, 300, 1))
			if held(host, 300) {
				t.Error("somebody still has a lock")
			}
		})
		t.Run("flock", func(t *testing.T) {
			must(t, unix.Flock(int(a.Fd()), unix.LOCK_SH))
			must(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB))
			wantErr(t, "host", unix.Flock(int(host.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EAGAIN)
			must(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
			done := make(chan error)
			go func() { done <- retry(func() error { return unix.Flock(int(a.Fd()), unix.LOCK_EX) }) }()
			must(t, unix.Flock(int(b.Fd()), unix.LOCK_UN))
			must(t, <-done)
			wantErr(t, "host", unix.Flock(int(host.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EAGAIN)
		})
	})
}

func TestIoctls(t *testing.T) {
	s := serve(t, files(t, "f"), Options{Writable: true})
	f, err := os.OpenFile(s.path("f"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	ioctl := func(cmd uintptr, arg unsafe.Pointer) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), cmd, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	}
	const noDump = 0x40
	var flags int32
	must(t, ioctl(unix.FS_IOC_GETFLAGS, unsafe.Pointer(&flags)))
	flags |= noDump
	must(t, ioctl(unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)))
	if out := shell(t, `lsattr "$1"`, s.host("f")); !strings.Contains(strings.Fields(out)[0], "d") {
		t.Errorf("flag is not set: %s", out)
	}
	var x [28]byte
	must(t, ioctl(fsIocFSGetXattr, unsafe.Pointer(&x)))
	must(t, ioctl(fsIocFSSetXattr, unsafe.Pointer(&x)))
	var big [256]byte
	for name, cmd := range map[string]uintptr{
		"FITRIM": 0xc0185879, "EXT4_IOC_SHUTDOWN": 0x8004587d, "FS_IOC_SETVERSION": 0x40087602, "EXT4_IOC_RESIZE_FS": 0x40086610,
		"FIFREEZE-like": 0xc0045877 + 0x100, "TCGETS": 0x5401,
	} {
		wantErr(t, name, ioctl(cmd, unsafe.Pointer(&big)), unix.ENOTTY)
	}
	asUser(t, 1000, 1000, nil, func() {
		wantErr(t, "flags of another's file", ioctl(unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)), unix.EPERM)
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

func TestFileSizeLimitIsTheCallers(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t, "f"), o)
		out := shell(t, `trap "" XFSZ; ulimit -f 8; dd if=/dev/zero of="$1" bs=1024 count=100 2>&1 | grep -o "File too large"; stat -c %s "$1"`, s.path("f"))
		if !strings.Contains(out, "File too large") || !(strings.Contains(out, "\n4096\n") || strings.Contains(out, "\n8192\n")) {
			t.Errorf("got %q", out)
		}
	})
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

func TestCallerIsNotRoot(t *testing.T) {
	tree := files(t, "secret", "mine", "shared/", "group")
	must(t, os.Chmod(tree+"/secret", 0o600))
	must(t, os.Chown(tree+"/mine", 1000, 1000))
	must(t, os.Chmod(tree+"/shared", 0o777))
	must(t, os.Chmod(tree+"/group", 0o640))
	must(t, os.Chown(tree+"/group", 0, 600))
	// The session's root is the caller: it owns what the caller owns, and root's files are nobody's.
	ids := []IDRange{{Tree: 1000, Session: 0, Count: 1}}
	s := serve(t, tree, Options{
		Writable: true, Passthrough: true, Cache: Cache{Entry: -1, Attr: -1},
		IDs: IDMap{UID: ids, GID: ids}, Caller: &Credential{UID: 1000, GID: 1000, Groups: []uint32{600}},
	})
	_, err := os.ReadFile(s.path("secret"))
	wantErr(t, "root's file, read by the caller's root", err, unix.EACCES)
	wantErr(t, "chown", os.Chown(s.path("secret"), 0, 0), unix.EPERM)
	wantErr(t, "chmod", os.Chmod(s.path("secret"), 0o777), unix.EPERM)
	wantErr(t, "unlink", os.Remove(s.path("secret")), unix.EACCES)
	wantErr(t, "create", os.WriteFile(s.path("new"), nil, 0o644), unix.EACCES)
	wantErr(t, "trusted xattr", unix.Setxattr(s.path("mine"), "trusted.x", nil, 0), unix.EPERM)
	wantErr(t, "mknod of a device", unix.Mknod(s.path("shared/dev"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))), unix.EPERM)
	wantContent(t, s.path("group"), "group")
	must(t, os.WriteFile(s.path("mine"), []byte("changed"), 0))
	must(t, os.WriteFile(s.path("shared/new"), []byte("new"), 0o600))
	if got := mode(t, s.host("shared/new")); got != "600 1000:1000" {
		t.Errorf("new file: %s", got)
	}
	wantContent(t, s.path("shared/new"), "new")
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
