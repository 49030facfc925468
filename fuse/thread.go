package fuse

import (
	"fmt"
	"runtime"
	"unsafe"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Credential is the identity of somebody for whom a file system is served, in ids of the tree.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// caps is a set of capabilities, one bit each.
type caps uint64

const (
	capFSETID        caps = 1 << unix.CAP_FSETID
	capDACReadSearch caps = 1 << unix.CAP_DAC_READ_SEARCH
	capSysAdmin      caps = 1 << unix.CAP_SYS_ADMIN
)

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const secbitNoSetuidFixup = 1 << 2

// A server thread is an operating system thread whose umask, working directory, file system ids and capabilities are
// its own. Linux keeps all of these per thread; it is only libraries that pretend otherwise. Every operation on the
// tree runs on such a thread, and changes them for the length of one system call where it has to.
type threads struct {
	procFD int // /proc/self/fd
	caller *Credential

	permitted caps // what we may raise
	base      caps // effective between operations
}

// openProcFD opens /proc/self/fd and makes sure that it is really procfs: a bind mount over it would let somebody else
// choose what our descriptors lead to.
func openProcFD() (int, error) {
	fd, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /proc/self/fd: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("statfs /proc/self/fd: %w", err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("/proc/self/fd is on file system type %#x, not procfs", st.Type)
	}
	return fd, nil
}

func newThreads(caller *Credential) (*threads, error) {
	procFD, err := openProcFD()
	if err != nil {
		return nil, err
	}
	t := &threads{procFD: procFD, caller: caller}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		unix.Close(procFD)
		return nil, fmt.Errorf("capget: %w", err)
	}
	t.permitted = caps(data[0].Permitted) | caps(data[1].Permitted)<<32
	if caller == nil {
		t.base = caps(data[0].Effective) | caps(data[1].Effective)<<32
	}
	return t, nil
}

// enter makes the calling goroutine's thread a server thread. The goroutine must end without unlocking the thread:
// the runtime then ends the thread as well.
func (t *threads) enter() error {
	runtime.LockOSThread()
	// umask and working directory are shared between all threads until CLONE_FS is unshared.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare(CLONE_FS): %w", err)
	}
	if err := unix.Fchdir(t.procFD); err != nil {
		return fmt.Errorf("fchdir /proc/self/fd: %w", err)
	}
	unix.Umask(0)
	// Without this, setfsuid to a user drops the file system capabilities and back raises them all again.
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("set securebits: %w", err)
	}
	if c := t.caller; c != nil {
		if err := setThreadGroups(c.Groups); err != nil {
			return fmt.Errorf("setgroups: %w", err)
		}
		setfsids(c.UID, c.GID)
		if err := t.setCaps(t.base); err != nil {
			return fmt.Errorf("capset: %w", err)
		}
	}
	return nil
}

// run runs f on a server thread of its own.
func (t *threads) run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := t.enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// setCaps changes the effective capabilities of this thread.
func (t *threads) setCaps(effective caps) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	p := t.permitted
	data := [2]unix.CapUserData{
		{Effective: uint32(effective & p), Permitted: uint32(p)},
		{Effective: uint32((effective & p) >> 32), Permitted: uint32(p >> 32)},
	}
	return unix.Capset(&hdr, &data[0])
}

// with runs f with capabilities added to and removed from the effective ones.
func (t *threads) with(add, remove caps, f func() error) error {
	c := (t.base | add&t.permitted) &^ remove
	if c == t.base {
		return f()
	}
	if err := t.setCaps(c); err != nil {
		return err
	}
	err := f()
	for t.setCaps(t.base) != nil {
		// Capabilities that are permitted can always be set, but the kernel may be out of memory for a moment (ENOMEM).
		// This thread must not go on with the wrong ones.
		runtime.Gosched()
	}
	return err
}

// withoutSetID runs f such that a write, a truncation or a change of owner clears set-id bits, as it does for a caller
// without CAP_FSETID: the kernel keeps the bits for one who has it.
func (t *threads) withoutSetID(kill bool, f func() error) error {
	if !kill {
		return f()
	}
	return t.with(0, capFSETID, f)
}

// setThreadGroups is setgroups(2) for this thread only.
func setThreadGroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); errno != 0 {
		return errno
	}
	return nil
}

// setfsids changes the file system ids of this thread. The gid goes first: it needs a capability that only matters
// if the uid is not root's, and both never fail for a thread with CAP_SETUID and CAP_SETGID.
func setfsids(uid, gid uint32) {
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
}

// as runs f, which creates something, under the file system ids and the umask of the process that asked. With a
// Caller the ids stay the caller's. Capabilities stay: the kernel has checked permissions already, and since Linux 6.0
// strips the set-gid bit from what a stranger to the group creates before it asks us.
func (fs *tree) as(h *raw.InHeader, umask uint32, f func() error) error {
	uid, gid, err := fs.ids.fromSession(h.Uid, h.Gid)
	if err != nil {
		return err
	}
	if umask &= 0o777; umask != 0 {
		unix.Umask(int(umask))
		defer unix.Umask(0)
	}
	if fs.threads.caller == nil && (uid != 0 || gid != 0) {
		setfsids(uid, gid)
		defer setfsids(0, 0)
	}
	return f()
}
