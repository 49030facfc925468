package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ownership is whose a process's namespaces are.
type Ownership struct {
	// Apart: the process is in a user namespace below the caller's own.
	Apart bool
	// Owners are uids of the host, each of whom made a user namespace that the process is in, and all of whose other
	// namespaces, as far as they are not the caller's, belong to that one or to one below it. An owner has all capabilities
	// in these (user_namespaces(7)) and so can enter the process's namespaces without anybody's help.
	Owners []uint32
}

// OwnershipOf tells whose the namespaces of process pid are (NS_GET_OWNER_UID, NS_GET_PARENT and NS_GET_USERNS, ioctl_ns(2),
// Linux 4.11). It takes CAP_SYS_PTRACE and CAP_SYS_ADMIN.
//
// Who made a process's user namespace need not own the rest: in a machine of root's, anybody with the uid 1000 can make one, and
// has then the rights of the host's user 1000 over it, but none over the machine's network.
func OwnershipOf(pid int) (Ownership, error) {
	its, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return Ownership{}, err
	}
	chain, err := userNamespaces(its)
	if err != nil {
		return Ownership{}, fmt.Errorf("the user namespaces of process %d: %w", pid, err)
	}
	// How far out in the chain somebody has to own a user namespace.
	outermost := 0
	for _, k := range kinds {
		if k.flag == unix.CLONE_NEWUSER {
			continue
		}
		level, err := levelOf(chain, pid, k.name)
		if err != nil {
			return Ownership{}, fmt.Errorf("who owns the %s namespace of process %d: %w", k.name, pid, err)
		}
		outermost = max(outermost, level)
	}
	o := Ownership{Apart: len(chain) > 0}
	for _, ns := range chain[min(outermost, len(chain)):] {
		o.Owners = append(o.Owners, ns.owner)
	}
	return o, nil
}

// userNamespace is one below the caller's own.
type userNamespace struct {
	id    fs.FileInfo
	owner uint32
}

// userNamespaces returns a user namespace and those around it, up to the caller's own, which is not among them. It closes
// the file.
func userNamespaces(at *os.File) ([]userNamespace, error) {
	defer func() { closeAll(at) }()
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return nil, err
	}
	var chain []userNamespace
	for {
		info, err := at.Stat()
		if err != nil {
			return nil, err
		}
		if os.SameFile(own, info) {
			return chain, nil
		}
		uid, err := unix.IoctlGetUint32(int(at.Fd()), unix.NS_GET_OWNER_UID)
		if err != nil {
			return nil, fmt.Errorf("asking for the owner: %w", err)
		}
		chain = append(chain, userNamespace{info, uid})
		around, err := related(at, unix.NS_GET_PARENT)
		if err != nil {
			return nil, err // EPERM: it is not below this one's
		}
		closeAll(at)
		at = around
	}
}

// levelOf returns which of the process's user namespaces owns its namespace of a kind, or the user namespace that does so, by
// its place in the chain: 0 is the innermost, len(chain) the caller's own. It is 0, too, where the caller is in the
// namespace itself.
func levelOf(chain []userNamespace, pid int, kind string) (int, error) {
	own, err := os.Stat("/proc/self/ns/" + kind)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // this kernel has no such namespaces
	}
	if err != nil {
		return 0, err
	}
	its, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return 0, err
	}
	defer its.Close()
	if info, err := its.Stat(); err != nil || os.SameFile(own, info) {
		return 0, err
	}
	of, err := related(its, unix.NS_GET_USERNS)
	if err != nil {
		return 0, err
	}
	owning, err := userNamespaces(of)
	if err != nil {
		return 0, err
	}
	for _, ns := range owning {
		for level := range chain {
			if os.SameFile(chain[level].id, ns.id) {
				return level, nil
			}
		}
	}
	return len(chain), nil
}

// related returns the namespace that another one is related to.
func related(to *os.File, request uint) (*os.File, error) {
	fd, err := unix.IoctlRetInt(int(to.Fd()), request)
	if err != nil {
		return nil, fmt.Errorf("asking for a related namespace: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "user namespace"), nil
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
