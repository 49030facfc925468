//go:build integration

// Package hostile has what a hostile machine tries, for tests.
package hostile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Secret is a file that only the host has.
const Secret = "/root/cntr-secret"

// Attempts are the ways to get hold of another process.
var Attempts = []struct {
	Name string
	Try  func(pid int) error
}{
	{"ptrace", ptrace},
	{"process_vm_readv", readMemory},
	{"mem", func(pid int) error { return open(pid, "mem", unix.O_RDWR) }},
	{"environ", func(pid int) error { return open(pid, "environ", unix.O_RDONLY) }},
	{"root", func(pid int) error { return open(pid, "root/etc", unix.O_RDONLY) }},
	{"cwd", func(pid int) error { return open(pid, "cwd", unix.O_RDONLY) }},
	{"exe", func(pid int) error { return open(pid, "exe", unix.O_RDONLY) }},
	{"writing exe", func(pid int) error { return open(pid, "exe", unix.O_WRONLY) }},
	{"reading the host", func(pid int) error { return open(pid, "root"+Secret, unix.O_RDONLY) }},
	{"writing to the host", func(pid int) error { return open(pid, "root"+Secret, unix.O_WRONLY) }},
	{"fd", func(pid int) error { return open(pid, "fd/1", unix.O_WRONLY) }},
	{"map_files", listMappings},
	{"namespace", func(pid int) error { return open(pid, "ns/mnt", unix.O_RDONLY) }},
	{"setns", join},
	{"pidfd_getfd", takeDescriptor},
}

// Succeeded tries all, and returns the names of those that succeeded.
func Succeeded(pid int) []string {
	var names []string
	for _, a := range Attempts {
		if !refused(a.Try(pid)) {
			names = append(names, a.Name)
		}
	}
	return names
}

// refused reports whether an attempt came to nothing: it was not permitted, or the process has just ended, or its
// program cannot be written to while it runs or at all.
func refused(err error) bool {
	for _, refusal := range []error{fs.ErrPermission, fs.ErrNotExist, unix.ESRCH, unix.ETXTBSY, unix.EROFS} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

func ptrace(pid int) error {
	runtime.LockOSThread() // ptrace(2) goes by threads
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return err
	}
	_ = unix.PtraceInterrupt(pid)
	var status unix.WaitStatus
	_, _ = unix.Wait4(pid, &status, unix.WALL, nil)
	_ = unix.PtraceDetach(pid) // it may have ended
	return nil
}

func readMemory(pid int) error {
	var b [1]byte
	at := uintptr(unsafe.Pointer(&b)) // whatever is there: EFAULT is no refusal
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: at, Len: 1}}, 0)
	return err
}

func open(pid int, name string, mode int) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), mode|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func listMappings(pid int) error {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/map_files", pid))
	if err == nil && len(list) == 0 {
		err = unix.ENOENT
	}
	return err
}

func takeDescriptor(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	got, err := unix.PidfdGetfd(fd, 1, 0)
	if err == nil {
		_ = unix.Close(got)
	}
	return err
}

// join enters the mount namespace of the process, on a thread that ends with it.
func join(pid int) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			err = unix.Unshare(unix.CLONE_FS)
		}
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNS)
			_ = unix.Close(fd)
		}
		result <- err
	}()
	return <-result
}
