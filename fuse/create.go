package fuse

import (
	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// newName checks a name that is about to be made in a directory and lends a descriptor of the directory.
func (fs *tree) newName(h *raw.InHeader, node uint64, name string) (*inode, lent, raw.Status) {
	dir := fs.inodes.get(node)
	if dir == nil {
		return nil, lent{}, raw.Status(unix.ESTALE)
	}
	if st := fs.mayChange(h); !st.Ok() {
		return nil, lent{}, st
	}
	if !validName(name) {
		return nil, lent{}, raw.EINVAL
	}
	if x := dir.child(name); x != nil && (dir.made || fs.isMade(x)) {
		return nil, lent{}, raw.Status(unix.EEXIST)
	}
	if dir.made || dir.mnt.flags&opaque != 0 {
		return nil, lent{}, raw.EROFS
	}
	l, err := fs.lend(dir, 0, false)
	return dir, l, status(err)
}

// Create is open(2) with O_CREAT of a name that does not exist.
func (fs *tree) Create(_ <-chan struct{}, in *raw.CreateIn, name string, out *raw.CreateOut) raw.Status {
	dir, l, st := fs.newName(&in.InHeader, in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer l.release()
	fd := -1
	err := fs.as(&in.InHeader, in.Umask, func() error {
		return retry(func() (err error) {
			// With O_EXCL, so that this opens what it made and nothing else.
			flags := in.Flags&openFlags&^unix.O_TRUNC | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
			fd, err = unix.Openat(l.fd, name, int(flags), in.Mode&0o7777)
			return err
		})
	})
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		// Somebody else made it since the kernel looked. Nobody checked whether the caller may open that one. With
		// ESTALE the kernel starts over, looks the name up and checks (do_filp_open, LOOKUP_REVAL).
		return raw.Status(unix.ESTALE)
	}
	if err != nil {
		return status(err)
	}
	return fs.created(dir, name, fd, in.Flags, out)
}

// Tmpfile is open(2) with O_TMPFILE.
func (fs *tree) Tmpfile(_ <-chan struct{}, in *raw.CreateIn, out *raw.CreateOut) raw.Status {
	dir, l, st := fs.newName(&in.InHeader, in.NodeId, "tmpfile")
	if !st.Ok() {
		return st
	}
	defer l.release()
	fd := -1
	err := fs.as(&in.InHeader, in.Umask, func() error {
		return retry(func() (err error) {
			flags := in.Flags&openFlags&^unix.O_TRUNC | unix.O_TMPFILE | in.Flags&unix.O_EXCL | unix.O_CLOEXEC
			fd, err = unix.Openat(l.fd, ".", int(flags), in.Mode&0o7777)
			return err
		})
	})
	if err != nil {
		return status(err)
	}
	st = fs.created(dir, "", fd, in.Flags, out)
	if st.Ok() {
		if n := fs.inodes.get(out.NodeId); n != nil {
			fs.pinIfLast(n, 0)
		}
	}
	return st
}

// created answers for a file that was made and opened as fd, and has a name in dir or none.
func (fs *tree) created(dir *inode, name string, fd int, flags uint32, out *raw.CreateOut) raw.Status {
	path, err := unix.Openat(fs.threads.procFD, fdName(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	n, stx, err := fs.inodeFor(path)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	if name != "" {
		fs.descs.place(n, dir, name)
	}
	fs.enter(n, &stx, 0, &out.EntryOut)
	fs.opened(n, fd, flags, &out.OpenOut)
	return raw.OK
}

// entered answers for a name that was made.
func (fs *tree) entered(dir *inode, dirfd int, name string, err error, out *raw.EntryOut) raw.Status {
	if err != nil {
		return status(err)
	}
	return status(fs.lookupChild(dir, dirfd, name, 0, out))
}

// Mkdir is mkdir(2).
func (fs *tree) Mkdir(_ <-chan struct{}, in *raw.MkdirIn, name string, out *raw.EntryOut) raw.Status {
	dir, l, st := fs.newName(&in.InHeader, in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer l.release()
	err := fs.as(&in.InHeader, in.Umask, func() error {
		return unix.Mkdirat(l.fd, name, in.Mode&0o7777)
	})
	return fs.entered(dir, l.fd, name, err, out)
}

// Mknod is mknod(2). Whether the caller may make devices was checked by the kernel, in the user namespace that counts.
func (fs *tree) Mknod(_ <-chan struct{}, in *raw.MknodIn, name string, out *raw.EntryOut) raw.Status {
	dir, l, st := fs.newName(&in.InHeader, in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer l.release()
	err := fs.as(&in.InHeader, in.Umask, func() error {
		return unix.Mknodat(l.fd, name, in.Mode, int(in.Rdev))
	})
	return fs.entered(dir, l.fd, name, err, out)
}

// Symlink is symlink(2).
func (fs *tree) Symlink(_ <-chan struct{}, h *raw.InHeader, target, name string, out *raw.EntryOut) raw.Status {
	dir, l, st := fs.newName(h, h.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer l.release()
	err := fs.as(h, 0, func() error { return unix.Symlinkat(target, l.fd, name) })
	return fs.entered(dir, l.fd, name, err, out)
}

// Link is link(2), also of a file without a name that was opened with O_TMPFILE.
func (fs *tree) Link(_ <-chan struct{}, in *raw.LinkIn, name string, out *raw.EntryOut) raw.Status {
	dir, l, st := fs.newName(&in.InHeader, in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer l.release()
	n := fs.inodes.get(in.Oldnodeid)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if n.made {
		return raw.EXDEV
	}
	old, err := fs.lend(n, 0, false)
	if err != nil {
		return status(err)
	}
	defer old.release()
	// By the link in /proc/self/fd: AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH.
	err = unix.Linkat(fs.threads.procFD, fdName(old.fd), l.fd, name, unix.AT_SYMLINK_FOLLOW)
	if err == nil {
		fs.descs.unpin(n)
	}
	return fs.entered(dir, l.fd, name, err, out)
}
