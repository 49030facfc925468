//go:build integration

package fuse

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestURingIsForbidden serves where a seccomp filter refuses to make a ring.
func TestURingIsForbidden(t *testing.T) {
	child(t, "forbidden", files(t, "f"), tempDir(t))
}

func forbiddenChild(args []string) error {
	if err := forbid(unix.SYS_IO_URING_SETUP); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	root, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer root.Close()
	fs, err := New(Options{Root: root, URing: true})
	if err != nil {
		return err
	}
	fs.tree.usesItself.Store(true)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := mountFuse(dev, args[1]); err != nil {
		return err
	}
	done := make(chan error)
	go func() { done <- fs.Serve(dev) }()
	var st unix.Stat_t
	err = unix.Stat(args[1]+"/f", &st)
	over := fs.Transport()
	if err := unix.Unmount(args[1], 0); err != nil {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	if err != nil || over != "/dev/fuse" {
		return fmt.Errorf("stat over %s: %w", over, err)
	}
	return nil
}

// forbid has a system call fail with EPERM in this process from now on (seccomp(2)).
func forbid(call uint32) error {
	const (
		setModeFilter = 1
		tsync         = 1
		refuse        = 0x00050000 | uint32(unix.EPERM) // SECCOMP_RET_ERRNO
		allow         = 0x7fff0000
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: refuse},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, tsync, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}

// TestWaitingRequestsDelayNobody has many threads wait for a lock, on one CPU, and others go on there.
func TestWaitingRequestsDelayNobody(t *testing.T) {
	s := serve(t, files(t, "f", "other"), Options{Writable: true, Cache: Cache{-1, -1, -1}})
	host, err := os.Open(s.host("f"))
	must(t, err)
	defer host.Close()
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_EX))
	const waiters = 40
	locked := make(chan error, waiters)
	for range waiters {
		go onOneCPU(func() {
			fd, err := unix.Open(s.path("f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = retry(func() error { return unix.Flock(fd, unix.LOCK_SH) })
				unix.Close(fd)
			}
			locked <- err
		})
	}
	looked := make(chan error)
	go onOneCPU(func() {
		var err error
		for i := 0; err == nil && (i < 100 || s.Requests()["SETLKW"] < waiters); i++ {
			var st unix.Stat_t
			err = unix.Stat(s.path("other"), &st)
		}
		looked <- err
	})
	select {
	case err := <-looked:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Error("nobody gets through")
	}
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_UN))
	for range waiters {
		must(t, <-locked)
	}
}

// onOneCPU runs f on a thread that stays on the first CPU, and ends with it.
func onOneCPU(f func()) {
	runtime.LockOSThread()
	pin(0)
	f()
}
