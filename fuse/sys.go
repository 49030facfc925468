package fuse

import (
	"encoding/binary"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// status turns an error of package unix into what goes back over the wire.
func status(err error) raw.Status {
	switch e := err.(type) {
	case nil:
		return raw.OK
	case syscall.Errno:
		return raw.Status(e)
	}
	return raw.EIO
}

// retry calls f again as long as a signal interrupts it. The Go runtime signals its own threads, so any slow call may
// fail with EINTR although nobody wanted to stop it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID | unix.STATX_MNT_ID_UNIQUE

// statFD reads the attributes of the inode behind fd, which may be an O_PATH descriptor. stx_mnt_id tells which mount
// fd is on: never used twice since Linux 6.8 (STATX_MNT_ID_UNIQUE), may be used again before.
func statFD(fd int, stx *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statxMask, stx)
}

// openPath opens one name in a directory as an O_PATH descriptor. O_PATH opens nothing, so a FIFO does not block and a
// device does not notice; with O_NOFOLLOW a symbolic link is opened itself. Without O_DIRECTORY it does not
// trigger an automount either: follow_automount() leaves the last component alone for O_PATH.
func openPath(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// maxHandle is MAX_HANDLE_SZ of linux/exportfs.h.
const maxHandle = 128

// handleBuffer has the layout of struct file_handle: length, type, bytes.
type handleBuffer [8 + maxHandle]byte

// readHandle asks for the file handle of fd and returns type and bytes as one slice of buf. EOPNOTSUPP: the file
// system has none.
func readHandle(fd int, buf *handleBuffer) ([]byte, error) {
	binary.NativeEndian.PutUint32(buf[:], maxHandle)
	var mountID int32
	var empty byte
	_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(buf)), uintptr(unsafe.Pointer(&mountID)), unix.AT_EMPTY_PATH, 0)
	if errno != 0 {
		return nil, errno
	}
	n := binary.NativeEndian.Uint32(buf[:])
	return buf[4 : 8+n], nil
}

// openHandle opens the inode of a handle that readHandle returned as an O_PATH descriptor. mount is an open (not
// O_PATH) descriptor on the same mount. Needs CAP_DAC_READ_SEARCH; ESTALE: the inode is gone.
func openHandle(mount int, handle string) (int, error) {
	var buf handleBuffer
	binary.NativeEndian.PutUint32(buf[:], uint32(len(handle)-4))
	copy(buf[4:], handle)
	for {
		fd, _, errno := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mount), uintptr(unsafe.Pointer(&buf)),
			unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		runtime.KeepAlive(&buf)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}

// fdName is the name of a descriptor in /proc/self/fd. Server threads have that directory as their working directory
// (thread.go), so the name alone leads to the inode, whatever it is, without any path of the tree.
func fdName(fd int) string { return strconv.Itoa(fd) }
