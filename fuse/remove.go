package fuse

import (
	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// oldName checks a name that is about to be removed from a directory and lends a descriptor of the directory.
func (fs *tree) oldName(h *raw.InHeader, node uint64, name string) (lent, raw.Status) {
	dir := fs.inodes.get(node)
	if dir == nil {
		return lent{}, raw.Status(unix.ESTALE)
	}
	if st := fs.mayChange(h); !st.Ok() {
		return lent{}, st
	}
	if !validName(name) {
		return lent{}, raw.EINVAL
	}
	if dir.child(name) != nil {
		return lent{}, raw.EBUSY // made up, or on the way to something that is: as if mounted upon
	}
	if dir.made || dir.mnt.flags&opaque != 0 {
		return lent{}, raw.EROFS
	}
	l, err := fs.lend(dir, 0, false)
	return l, status(err)
}

// A file that loses its last name can be in use still: it is open, or the kernel knows it as a working directory. File
// systems differ in whether its handle can be opened then. So a descriptor of it is pinned before.

// pinned is an inode that was pinned for the removal of a name.
type pinned struct {
	fs *tree
	n  *inode
}

// pinName pins the inode behind a name that is about to be removed, if the kernel knows it and this is its last name, or
// may be the only one by which it can be found.
func (fs *tree) pinName(dirfd int, name string) pinned {
	n, links := fs.knownAt(dirfd, name)
	if n == nil || n.handle != "" && links > 1 && !n.isDir() {
		return pinned{}
	}
	d, err := fs.descs.borrow(n)
	if err != nil {
		return pinned{}
	}
	fs.descs.pin(n, d)
	fs.descs.put(d)
	return pinned{fs, n}
}

// removed keeps the pin if the name is gone, and undoes it if err says that it stayed.
func (p pinned) removed(err error) {
	if p.n != nil && err != nil {
		p.fs.descs.unpin(p.n)
	}
}

// pinIfLast pins an inode that has no more than links names.
func (fs *tree) pinIfLast(n *inode, links uint32) {
	d, err := fs.descs.borrow(n)
	if err != nil {
		return
	}
	defer fs.descs.put(d)
	var stx unix.Statx_t
	if statFD(d.fd, &stx) == nil && stx.Nlink <= links {
		fs.descs.pin(n, d)
	}
}

// Unlink is unlink(2).
func (fs *tree) Unlink(_ <-chan struct{}, h *raw.InHeader, name string) raw.Status {
	return fs.remove(h, name, 0)
}

// Rmdir is rmdir(2).
func (fs *tree) Rmdir(_ <-chan struct{}, h *raw.InHeader, name string) raw.Status {
	return fs.remove(h, name, unix.AT_REMOVEDIR)
}

func (fs *tree) remove(h *raw.InHeader, name string, flags int) raw.Status {
	l, st := fs.oldName(h, h.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer l.release()
	p := fs.pinName(l.fd, name)
	err := unix.Unlinkat(l.fd, name, flags)
	p.removed(err)
	return status(err)
}

// Rename is rename(2) and renameat2(2).
func (fs *tree) Rename(_ <-chan struct{}, in *raw.RenameIn, oldName, newName string) raw.Status {
	flags := in.Flags
	if in.Opcode == opRename {
		flags = 0 // the request ends before the flags
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return raw.EINVAL // whiteouts are made by overlayfs, which does not sit on us
	}
	from, st := fs.oldName(&in.InHeader, in.NodeId, oldName)
	if !st.Ok() {
		return st
	}
	defer from.release()
	to, st := fs.oldName(&in.InHeader, in.Newdir, newName)
	if !st.Ok() {
		return st
	}
	defer to.release()
	var p pinned
	if flags == 0 {
		p = fs.pinName(to.fd, newName)
	}
	err := unix.Renameat2(from.fd, oldName, to.fd, newName, uint(flags))
	p.removed(err)
	if err != nil {
		return status(err)
	}
	fs.moved(to.n, to.fd, newName)
	fs.hasMoved(from.n, to.n, newName)
	if flags&unix.RENAME_EXCHANGE != 0 {
		fs.moved(from.n, from.fd, oldName)
		fs.hasMoved(to.n, from.n, oldName)
	}
	return raw.OK
}

const opRename = 12
