package fuse

import (
	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFlags are the flags of open(2) that the server's own descriptor is opened with. The others were dealt with by the
// kernel, belong to single writes (O_APPEND, O_SYNC, see Write), or are not for us (O_DIRECT: our buffers are not
// the caller's; passthrough gives the kernel's file the flag).
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_NOATIME

// reopen opens the inode behind an O_PATH descriptor for input and output, by way of the link in /proc/self/fd.
func (fs *tree) reopen(fd int, flags uint32) (int, error) {
	nfd := -1
	err := retry(func() (err error) {
		nfd, err = unix.Openat(fs.threads.procFD, fdName(fd), int(flags)|unix.O_CLOEXEC|unix.O_LARGEFILE, 0)
		return err
	})
	return nfd, err
}

// Open is open(2) of a file that exists. The kernel has checked permissions.
func (fs *tree) Open(_ <-chan struct{}, in *raw.OpenIn, out *raw.OpenOut) raw.Status {
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if !fs.allowed(&in.InHeader) {
		return raw.EACCES
	}
	writes := in.Flags&unix.O_ACCMODE != unix.O_RDONLY || in.Flags&unix.O_TRUNC != 0
	if writes && (!fs.opts.Writable || n.made) {
		return raw.EROFS
	}
	if n.kind != unix.S_IFREG {
		return raw.EACCES // the kernel opens everything else by itself
	}
	if n.made {
		fs.openMade(n, out)
		return raw.OK
	}
	if fs.openShared(n, in.Flags, out) {
		return raw.OK
	}
	l, err := fs.lend(n, 0, false)
	if err != nil {
		return status(err)
	}
	defer l.release()
	fd := -1
	err = fs.threads.withoutSetID(in.Mode&raw.OPEN_KILL_SUIDGID != 0 && in.Flags&unix.O_TRUNC != 0, func() (err error) {
		fd, err = fs.reopen(l.fd, in.Flags&openFlags)
		return err
	})
	if err != nil {
		return status(err)
	}
	fs.opened(n, fd, in.Flags, out)
	return raw.OK
}

// openMade opens a file that is made up. Its content never changes.
func (fs *tree) openMade(n *inode, out *raw.OpenOut) {
	h := &handle{n: n, fd: -1, noFlush: true}
	fs.handles.add(h)
	out.Fh = h.fh
	out.OpenFlags = raw.FOPEN_KEEP_CACHE | raw.FOPEN_NOFLUSH
}

// Read reads into buf, which is part of the reply.
func (fs *tree) Read(_ <-chan struct{}, in *raw.ReadIn, buf []byte) (raw.ReadResult, raw.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return nil, raw.EBADF
	}
	if h.n.made {
		return readMade(h.n, in), raw.OK
	}
	// In volatile files a short read is not the end, and the next one may be another event.
	return readFrom(h.fd, in, buf, h.n.mnt.flags&volatileData == 0)
}

// readFrom reads from a descriptor, and unless fill is set no more than once.
func readFrom(fd int, in *raw.ReadIn, buf []byte, fill bool) (raw.ReadResult, raw.Status) {
	size := 0
	for size < len(buf) {
		n, err := unix.Pread(fd, buf[size:], int64(in.Offset)+int64(size))
		if err == unix.EINTR {
			continue
		}
		if err != nil && size == 0 {
			return nil, status(err)
		}
		if n <= 0 {
			break
		}
		size += n
		if !fill {
			break
		}
	}
	return raw.ReadResultData(buf[:size]), raw.OK
}

func readMade(n *inode, in *raw.ReadIn) raw.ReadResult { return n.extra.Load().read(in) }

// read answers a request to read a made-up file.
func (x *extra) read(in *raw.ReadIn) raw.ReadResult {
	var content []byte
	if x.entry != nil {
		content = x.entry.Content
	}
	off := min(in.Offset, uint64(len(content)))
	end := min(off+uint64(in.Size), uint64(len(content)))
	return raw.ReadResultData(content[off:end])
}

// Write writes at an offset. The flags of the open file come with each write, as fcntl(2) may have changed them.
func (fs *tree) Write(_ <-chan struct{}, in *raw.WriteIn, data []byte) (uint32, raw.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil || h.fd < 0 {
		return 0, raw.EBADF
	}
	h.wrote.Store(true)
	flags := 0
	if in.WriteFlags&raw.WRITE_CACHE == 0 {
		if in.Flags&unix.O_APPEND != 0 {
			// At the end as it is now: somebody on the host may have written since the kernel last looked.
			flags |= unix.RWF_APPEND
		}
		if in.Flags&unix.O_SYNC == unix.O_SYNC {
			flags |= unix.RWF_SYNC
		} else if in.Flags&unix.O_DSYNC != 0 {
			flags |= unix.RWF_DSYNC
		}
	}
	written := 0
	err := fs.threads.withoutSetID(in.WriteFlags&raw.WRITE_KILL_SUIDGID != 0, func() error {
		for written < len(data) {
			n, err := unix.Pwritev2(h.fd, [][]byte{data[written:]}, int64(in.Offset)+int64(written), flags)
			switch {
			case err == unix.EINTR:
			case err != nil && written > 0:
				return nil
			case err != nil:
				return err
			case n == 0:
				return nil
			default:
				written += n
			}
		}
		return nil
	})
	return uint32(written), status(err)
}

// Flush is close(2) of one of the descriptors of an open file.
func (fs *tree) Flush(_ <-chan struct{}, in *raw.FlushIn) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil || h.fd < 0 {
		return raw.OK
	}
	fs.locks.closed(h.n, in.LockOwner)
	if !h.wrote.Load() {
		return raw.OK
	}
	// Network file systems and quotas report what went wrong with earlier writes when a descriptor is closed.
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return raw.OK
	}
	return status(unix.Close(fd))
}

const fsyncDataOnly = 1 // FUSE_FSYNC_FDATASYNC

// Fsync is fsync(2) and fdatasync(2).
func (fs *tree) Fsync(_ <-chan struct{}, in *raw.FsyncIn) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return raw.EBADF
	}
	return fsync(h, in.FsyncFlags)
}

func fsync(h *handle, flags uint32) raw.Status {
	if h.fd < 0 {
		return raw.OK
	}
	return status(retry(func() error {
		if flags&fsyncDataOnly != 0 {
			return unix.Fdatasync(h.fd)
		}
		return unix.Fsync(h.fd)
	}))
}

// FsyncDir is fsync(2) of a directory.
func (fs *tree) FsyncDir(cancel <-chan struct{}, in *raw.FsyncIn) raw.Status {
	if in.Fh != 0 {
		return fs.Fsync(cancel, in)
	}
	return fs.withDir(&in.InHeader, func(h *handle) raw.Status { return fsync(h, in.FsyncFlags) })
}

// Lseek finds data and holes (SEEK_DATA, SEEK_HOLE); other seeks do not reach the server.
func (fs *tree) Lseek(_ <-chan struct{}, in *raw.LseekIn, out *raw.LseekOut) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return raw.EBADF
	}
	if h.dir != nil || h.fd < 0 || (in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE) {
		return raw.EINVAL
	}
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(off)
	return raw.OK
}

// Fallocate is fallocate(2), in all modes that the tree's file system has.
func (fs *tree) Fallocate(_ <-chan struct{}, in *raw.FallocateIn) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil || h.fd < 0 {
		return raw.EBADF
	}
	if st := fs.mayWrite(); !st.Ok() {
		return st
	}
	h.wrote.Store(true)
	return status(fs.threads.withoutSetID(fs.killsSetID(&in.InHeader, h), func() error {
		return retry(func() error {
			return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
		})
	}))
}

// mayWrite is the check for changes through a file that was opened for writing, which Allow was asked about already.
func (fs *tree) mayWrite() raw.Status {
	if !fs.opts.Writable {
		return raw.EROFS
	}
	return raw.OK
}

// CopyFileRange is copy_file_range(2) between two open files of the mount.
func (fs *tree) CopyFileRange(_ <-chan struct{}, in *raw.CopyFileRangeIn) (uint32, raw.Status) {
	src, dst := fs.handles.get(in.FhIn), fs.handles.get(in.FhOut)
	if src == nil || dst == nil || dst.fd < 0 {
		return 0, raw.EBADF
	}
	if src.fd < 0 {
		return 0, raw.Status(unix.EOPNOTSUPP) // the kernel copies by itself then
	}
	if st := fs.mayWrite(); !st.Ok() {
		return 0, st
	}
	dst.wrote.Store(true)
	from, to := int64(in.OffIn), int64(in.OffOut)
	// The answer has 32 bits for the length.
	size := min(in.Len, 1<<30)
	var n int
	err := fs.threads.withoutSetID(fs.killsSetID(&in.InHeader, dst), func() error {
		return retry(func() (err error) {
			n, err = unix.CopyFileRange(src.fd, &from, dst.fd, &to, int(size), int(in.Flags))
			return err
		})
	})
	if err == unix.EXDEV || err == unix.ENOSYS {
		err = unix.EOPNOTSUPP
	}
	return uint32(max(n, 0)), status(err)
}
