package fuse

import (
	"bytes"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Extended attributes have no system calls for O_PATH descriptors before Linux 6.13, but follow the link in /proc/self/fd,
// the working directory of server threads, to the inode, be it a file, a device or a symbolic link.

// The longest value and list that Linux allows (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const xattrMax = 64 << 10

// GetXAttr is getxattr(2).
func (fs *tree) GetXAttr(_ <-chan struct{}, h *raw.InHeader, attr string, dest []byte) (uint32, raw.Status) {
	n := fs.inodes.get(h.NodeId)
	if n == nil {
		return 0, raw.Status(unix.ESTALE)
	}
	if n.made {
		return 0, raw.ENODATA
	}
	if !fs.allowed(h) {
		return 0, raw.EACCES
	}
	l, err := fs.lend(n, 0, false)
	if err != nil {
		return 0, status(err)
	}
	defer l.release()
	size, err := unix.Getxattr(fdName(l.fd), attr, dest)
	if err == unix.EOPNOTSUPP && (attr == aclAccess || attr == aclDefault) {
		// The kernel asks for the ACL of each file whose group or others want to open it, and with this error it refuses
		// (fuse_get_acl): no file of somebody else's could be opened on a file system that has no ACLs, squashfs for one.
		err = unix.ENODATA
	}
	if err != nil {
		return 0, status(err)
	}
	if len(dest) > 0 {
		fs.ids.showXattr(attr, dest[:size])
	}
	return uint32(size), raw.OK
}

// ListXAttr is listxattr(2).
func (fs *tree) ListXAttr(_ <-chan struct{}, h *raw.InHeader, dest []byte) (uint32, raw.Status) {
	n := fs.inodes.get(h.NodeId)
	if n == nil {
		return 0, raw.Status(unix.ESTALE)
	}
	if n.made {
		return 0, raw.OK
	}
	if !fs.allowed(h) {
		return 0, raw.EACCES
	}
	l, err := fs.lend(n, 0, false)
	if err != nil {
		return 0, status(err)
	}
	defer l.release()
	buf := make([]byte, xattrMax)
	size, err := unix.Listxattr(fdName(l.fd), buf)
	if err != nil {
		return 0, status(err)
	}
	return fs.ids.listXattrs(h.Uid, buf[:size], dest)
}

// listXattrs answers a caller's request for names, each with a NUL at its end.
func (m *idMap) listXattrs(uid uint32, names, dest []byte) (uint32, raw.Status) {
	if own, err := take(m.uid, uid); err != nil || own != 0 {
		names = withoutTrusted(names)
	}
	if len(dest) > 0 && len(names) > len(dest) {
		return uint32(len(names)), raw.ERANGE
	}
	copy(dest, names)
	return uint32(len(names)), raw.OK
}

// withoutTrusted leaves out names that file systems list for CAP_SYS_ADMIN only. The server has it; that the caller has
// it is taken from its being root.
func withoutTrusted(names []byte) []byte {
	out := names[:0]
	for len(names) > 0 {
		end := bytes.IndexByte(names, 0) + 1
		if end == 0 {
			break
		}
		if !bytes.HasPrefix(names, []byte("trusted.")) {
			out = append(out, names[:end]...)
		}
		names = names[end:]
	}
	return out
}

// SetXAttr is setxattr(2).
func (fs *tree) SetXAttr(_ <-chan struct{}, in *raw.SetXAttrIn, attr string, data []byte) raw.Status {
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if st := fs.mayChange(&in.InHeader); !st.Ok() {
		return st
	}
	if n.made {
		return raw.EROFS
	}
	data, err := fs.ids.takeXattr(attr, data)
	if err != nil {
		return status(err)
	}
	l, err := fs.lend(n, 0, false)
	if err != nil {
		return status(err)
	}
	defer l.release()
	// Setting an ACL takes the set-gid bit from a file of a group that the caller is not in; the kernel says when.
	return status(fs.threads.withoutSetID(in.SetXAttrFlags&raw.SETXATTR_ACL_KILL_SGID != 0, func() error {
		return unix.Setxattr(fdName(l.fd), attr, data, int(in.Flags))
	}))
}

// RemoveXAttr is removexattr(2).
func (fs *tree) RemoveXAttr(_ <-chan struct{}, h *raw.InHeader, attr string) raw.Status {
	n := fs.inodes.get(h.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if st := fs.mayChange(h); !st.Ok() {
		return st
	}
	if n.made {
		return raw.EROFS
	}
	l, err := fs.lend(n, 0, false)
	if err != nil {
		return status(err)
	}
	defer l.release()
	return status(unix.Removexattr(fdName(l.fd), attr))
}
