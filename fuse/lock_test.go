//go:build integration

package fuse

import (
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
