//go:build integration

package fuse

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
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
	fs, err := New(Options{Root: root})
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
	go func() { done <- fs.Serve(dev, URing) }()
	var st unix.Stat_t
	err = unix.Stat(args[1]+"/f", &st)
	over := fs.Transport()
	if err := unix.Unmount(args[1], 0); err != nil {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	if err != nil || over != Device {
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

// TestServerIsKilled kills the process that serves while somebody waits for it. Nobody waits for ever.
func TestServerIsKilled(t *testing.T) {
	tree, dir := files(t, "f"), tempDir(t)
	host, err := os.Open(filepath.Join(tree, "f"))
	must(t, err)
	defer host.Close()
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_EX))
	server := exec.Command("/proc/self/exe", tree, dir, *transportFlag)
	server.Env = append(os.Environ(), "FUSE_TEST_CHILD=serve")
	server.Stderr = os.Stderr
	must(t, server.Start())
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	waitFor(t, "served", func() bool { _, err := os.Stat(dir + "/f"); return err == nil })
	f, err := os.Open(dir + "/f")
	must(t, err)
	defer f.Close()
	waiting := make(chan error)
	go func() { waiting <- retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH) }) }()
	waitFor(t, "waiting", func() bool {
		locks, err := os.ReadFile("/proc/locks")
		must(t, err)
		return strings.Contains(string(locks), fmt.Sprintf("-> FLOCK  ADVISORY  READ %d ", server.Process.Pid))
	})
	must(t, server.Process.Kill())
	_ = server.Wait()
	wantErr(t, "lock", <-waiting, unix.ECONNABORTED)
	_, err = os.Stat(dir + "/never seen")
	wantErr(t, "stat", err, unix.ENOTCONN)
}

func serveChild(args []string) error {
	root, err := os.Open(args[0])
	if err != nil {
		return err
	}
	fs, err := New(Options{Root: root})
	if err != nil {
		return err
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := mountFuse(dev, args[1]); err != nil {
		return err
	}
	return fs.Serve(dev, Transport(args[2]))
}
