package ns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UserNamespaceOwners returns who made the user namespace of process pid, and those around it, up to the caller's own:
// uids of the host (NS_GET_OWNER_UID and NS_GET_PARENT, ioctl_ns(2), Linux 4.11). An owner has all capabilities in the
// namespace. None: the process is in the caller's user namespace.
func UserNamespaceOwners(pid int) ([]uint32, error) {
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return nil, err
	}
	at, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return nil, err
	}
	defer func() { closeAll(at) }()
	var owners []uint32
	for {
		info, err := at.Stat()
		if err != nil {
			return nil, err
		}
		if os.SameFile(own, info) {
			return owners, nil
		}
		uid, err := unix.IoctlGetUint32(int(at.Fd()), unix.NS_GET_OWNER_UID)
		if err != nil {
			return nil, fmt.Errorf("who owns the user namespace of process %d: %w", pid, err)
		}
		owners = append(owners, uid)
		parent, err := unix.IoctlRetInt(int(at.Fd()), unix.NS_GET_PARENT)
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("process %d is in no user namespace below this one's", pid)
		}
		if err != nil {
			return nil, fmt.Errorf("the user namespace around that of process %d: %w", pid, err)
		}
		unix.CloseOnExec(parent)
		closeAll(at)
		at = os.NewFile(uintptr(parent), "user namespace")
	}
}

// Identity is somebody of the host. The zero value is root.
type Identity struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Root reports whether it is root.
func (who Identity) Root() bool { return who.UID == 0 && who.GID == 0 }

// As runs f with the file system ids of somebody of the host, their groups and no capabilities, on a thread of its own: Linux
// keeps all of these per thread, and the process's are other ones meanwhile. What else of a process counts when it looks
// at another one (ptrace(2), 'Ptrace access mode checking') stays root's: f must not follow the links of procfs.
func (who Identity) As(f func() error) error {
	if who.Root() {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, and what was changed with it.
		runtime.LockOSThread()
		var groups unsafe.Pointer
		if len(who.Groups) > 0 {
			groups = unsafe.Pointer(&who.Groups[0])
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(who.Groups)), uintptr(groups), 0); errno != 0 {
			done <- fmt.Errorf("changing groups: %w", errno)
			return
		}
		unix.RawSyscall(unix.SYS_SETFSGID, uintptr(who.GID), 0, 0)
		unix.RawSyscall(unix.SYS_SETFSUID, uintptr(who.UID), 0, 0)
		// setfsuid(2) does not tell whether it failed; asked for what cannot be, it answers with what is.
		if now, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(^uint32(0)), 0, 0); uint32(now) != who.UID {
			done <- fmt.Errorf("becoming user %d: still %d", who.UID, now)
			return
		}
		// An id that is not root's has taken those over files, and no others (capabilities(7)): CAP_SYS_PTRACE, for one, opens
		// /proc/PID/fd.
		header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- fmt.Errorf("dropping capabilities: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
