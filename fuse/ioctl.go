package fuse

import (
	"unsafe"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The server runs with the rights of root on files of the host, and an ioctl is whatever a file system makes of it: one
// of ext4's shuts the disk down. So only these are passed on, all others fail with ENOTTY. For them the kernel checks
// ownership and CAP_LINUX_IMMUTABLE of the caller before it asks us (vfs_fileattr_set, Linux 5.13).
var ioctls = map[uint32]struct {
	size    int
	changes bool
}{
	unix.FS_IOC_GETFLAGS: {4, false}, // said to be a long, but is an int
	unix.FS_IOC_SETFLAGS: {4, true},
	fsIocFSGetXattr:      {28, false},
	fsIocFSSetXattr:      {28, true},
}

// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR of linux/fs.h.
const (
	fsIocFSGetXattr = 0x801c581f
	fsIocFSSetXattr = 0x401c5820
)

// Ioctl passes on what is harmless.
func (fs *tree) Ioctl(_ <-chan struct{}, in *raw.IoctlIn, inbuf []byte, out *raw.IoctlOut, outbuf []byte) raw.Status {
	if _, ok := ioctls[in.Cmd]; !ok {
		return raw.Status(unix.ENOTTY)
	}
	if in.Fh == 0 {
		return fs.withDir(&in.InHeader, func(h *handle) raw.Status { return fs.ioctl(h, in, inbuf, out, outbuf) })
	}
	h := fs.handles.get(in.Fh)
	if h == nil {
		return raw.EBADF
	}
	return fs.ioctl(h, in, inbuf, out, outbuf)
}

func (fs *tree) ioctl(h *handle, in *raw.IoctlIn, inbuf []byte, out *raw.IoctlOut, outbuf []byte) raw.Status {
	cmd := ioctls[in.Cmd]
	if h.fd < 0 || in.Flags&raw.IOCTL_COMPAT != 0 {
		return raw.Status(unix.ENOTTY)
	}
	if cmd.changes {
		if st := fs.mayChange(&in.InHeader); !st.Ok() {
			return st
		}
		if len(inbuf) < cmd.size {
			return raw.EINVAL
		}
	} else if len(outbuf) < cmd.size {
		return raw.EINVAL
	}
	var arg [64]byte
	if cmd.changes {
		copy(arg[:cmd.size], inbuf)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.fd), uintptr(in.Cmd), uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return raw.Status(errno)
	}
	if !cmd.changes {
		copy(outbuf, arg[:cmd.size])
	}
	out.Result = 0
	return raw.OK
}
