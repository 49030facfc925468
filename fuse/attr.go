package fuse

import (
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fill turns attributes of the tree into what the session sees.
func (fs *tree) fill(n *inode, stx *unix.Statx_t, a *raw.Attr) {
	*a = raw.Attr{
		Ino:       n.mnt.inoFor(stx.Ino),
		Size:      stx.Size,
		Blocks:    stx.Blocks,
		Atime:     uint64(stx.Atime.Sec),
		Mtime:     uint64(stx.Mtime.Sec),
		Ctime:     uint64(stx.Ctime.Sec),
		Atimensec: stx.Atime.Nsec,
		Mtimensec: stx.Mtime.Nsec,
		Ctimensec: stx.Ctime.Nsec,
		Mode:      uint32(stx.Mode),
		Nlink:     stx.Nlink,
		Rdev:      uint32(unix.Mkdev(stx.Rdev_major, stx.Rdev_minor)),
		Blksize:   stx.Blksize,
	}
	a.Uid, a.Gid = show(fs.ids.uid, stx.Uid), show(fs.ids.gid, stx.Gid)
}

// attrTimeout is how long attributes may be believed. Files whose size says nothing are asked for each time.
func (fs *tree) attrTimeout(n *inode, b belief) time.Duration {
	if n.mnt != nil && n.mnt.flags&volatileData != 0 {
		return 0
	}
	if !n.told.Load() && !n.watching() {
		b = 0
	}
	return fs.timeout(fs.cache.Attr, b)
}

// timeout is how long an answer may be believed that is believed for so long without a watcher.
func (fs *tree) timeout(without time.Duration, b belief) time.Duration {
	if fs.watcher.holds(b) {
		return max(without, fs.opts.Watch)
	}
	return without
}

// GetAttr is stat(2).
func (fs *tree) GetAttr(_ <-chan struct{}, in *raw.GetAttrIn, out *raw.AttrOut) raw.Status {
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	fs.mounts.probe.saw(in.Pid)
	return fs.getattr(n, in.Fh(), in.Flags()&raw.FUSE_GETATTR_FH != 0, out)
}

func (fs *tree) getattr(n *inode, fh uint64, hasFh bool, out *raw.AttrOut) raw.Status {
	if n.made {
		out.SetTimeout(Forever)
		fs.fillMade(n.extra.Load(), &out.Attr)
		return raw.OK
	}
	l, err := fs.lend(n, fh, hasFh)
	if err != nil {
		return status(err)
	}
	defer l.release()
	b := fs.watcher.now()
	var stx unix.Statx_t
	if err := statFD(l.fd, &stx); err != nil {
		return status(err)
	}
	if stx.Nlink != 1 {
		n.told.Store(false)
	}
	out.SetTimeout(fs.attrTimeout(n, b))
	fs.fill(n, &stx, &out.Attr)
	return raw.OK
}

// Statx is statx(2) with more than the basic attributes: the kernel sends it for the time of birth (Linux 6.6).
func (fs *tree) Statx(_ <-chan struct{}, in *raw.StatxIn, out *raw.StatxOut) raw.Status {
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	var a raw.Attr
	var stx unix.Statx_t
	if n.made {
		fs.fillMade(n.extra.Load(), &a)
		stx.Mask = unix.STATX_BASIC_STATS
		stx.Atime = unix.StatxTimestamp{Sec: fs.started.Unix(), Nsec: uint32(fs.started.Nanosecond())}
		stx.Mtime, stx.Ctime = stx.Atime, stx.Atime
	} else {
		l, err := fs.lend(n, in.Fh, in.GetattrFlags&raw.FUSE_GETATTR_FH != 0)
		if err != nil {
			return status(err)
		}
		defer l.release()
		if err := statFD(l.fd, &stx); err != nil {
			return status(err)
		}
		fs.fill(n, &stx, &a)
	}
	out.Statx.FromStatx(&stx)
	out.Mask &= unix.STATX_BASIC_STATS | unix.STATX_BTIME
	out.Ino, out.Uid, out.Gid = a.Ino, a.Uid, a.Gid
	out.Mode, out.Nlink, out.Size, out.Blocks, out.Blksize = uint16(a.Mode), a.Nlink, a.Size, a.Blocks, a.Blksize
	out.SetTimeout(fs.attrTimeout(n, 0))
	return raw.OK
}

// SetAttr is chmod(2), chown(2), truncate(2) and utimensat(2). The kernel has checked that the caller may.
func (fs *tree) SetAttr(_ <-chan struct{}, in *raw.SetAttrIn, out *raw.AttrOut) raw.Status {
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
	fh, hasFh := in.GetFh()
	l, err := fs.lend(n, fh, hasFh)
	if err != nil {
		return status(err)
	}
	defer l.release()
	if err := fs.setattr(n, l.fd, in); err != nil {
		return status(err)
	}
	return fs.getattr(n, fh, hasFh, out)
}

func (fs *tree) setattr(n *inode, fd int, in *raw.SetAttrIn) error {
	name := fdName(fd)
	if in.Valid&(raw.FATTR_UID|raw.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if id, ok := in.GetUID(); ok {
			id, err := take(fs.ids.uid, id)
			if err != nil {
				return err
			}
			uid = int(id)
		}
		if id, ok := in.GetGID(); ok {
			id, err := take(fs.ids.gid, id)
			if err != nil {
				return err
			}
			gid = int(id)
		}
		// The kernel clears set-id bits of whatever is given to somebody, no matter who does it.
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if n.kind != unix.S_IFREG {
			return unix.EINVAL
		}
		err := fs.threads.withoutSetID(in.Valid&raw.FATTR_KILL_SUIDGID != 0, func() error {
			// Who has the file open for writing may truncate it even if he may not write it any more.
			if fh, ok := in.GetFh(); ok {
				if h := fs.handles.get(fh); h != nil && h.n == n && h.writes {
					return retry(func() error { return unix.Ftruncate(h.fd, int64(size)) })
				}
			}
			return retry(func() error { return unix.Truncate(name, int64(size)) })
		})
		if err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := fs.chmod(n, name, mode); err != nil {
			return err
		}
	}
	if in.Valid&(raw.FATTR_ATIME|raw.FATTR_MTIME) != 0 {
		times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
		switch {
		case in.Valid&raw.FATTR_ATIME_NOW != 0:
			times[0].Nsec = unix.UTIME_NOW
		case in.Valid&raw.FATTR_ATIME != 0:
			times[0] = unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}
		}
		switch {
		case in.Valid&raw.FATTR_MTIME_NOW != 0:
			times[1].Nsec = unix.UTIME_NOW
		case in.Valid&raw.FATTR_MTIME != 0:
			times[1] = unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
		}
		// Following the link of procfs leads to the inode itself, also if that is a symbolic link.
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times[:], 0); err != nil {
			return err
		}
	}
	return nil
}

// chmod sets mode bits. The kernel refuses it for symbolic links before we are asked.
func (fs *tree) chmod(n *inode, name string, mode uint32) error {
	if n.kind == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Fchmodat(unix.AT_FDCWD, name, mode, 0)
}

// StatFs is statfs(2), of the mount that the inode is on.
func (fs *tree) StatFs(_ <-chan struct{}, h *raw.InHeader, out *raw.StatfsOut) raw.Status {
	n := fs.inodes.get(h.NodeId)
	if n == nil || n.made {
		n = fs.inodes.get(rootNode)
	}
	d, err := fs.descs.borrow(n)
	if err != nil {
		return status(err)
	}
	defer fs.descs.put(d)
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &st); err != nil {
		return status(err)
	}
	*out = raw.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return raw.OK
}

// Readlink returns the target of a symbolic link.
func (fs *tree) Readlink(_ <-chan struct{}, h *raw.InHeader) ([]byte, raw.Status) {
	n := fs.inodes.get(h.NodeId)
	if n == nil {
		return nil, raw.Status(unix.ESTALE)
	}
	if !fs.allowed(h) {
		return nil, raw.EACCES
	}
	if n.made {
		if n.kind != unix.S_IFLNK {
			return nil, raw.EINVAL
		}
		return []byte(n.extra.Load().entry.Target), raw.OK
	}
	d, err := fs.descs.borrow(n)
	if err != nil {
		return nil, status(err)
	}
	defer fs.descs.put(d)
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(d.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], raw.OK
}
