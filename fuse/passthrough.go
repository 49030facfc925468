package fuse

import (
	"sync/atomic"
	"unsafe"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ioMode is how the kernel reads and writes the files that are open on one inode. Linux allows one way per inode at a
// time: an open that answers otherwise fails with EIO (fuse_file_io_open), so the first open of an inode decides.
type ioMode uint8

const (
	ioUndecided   ioMode = iota
	ioCached             // through the page cache of our mount
	ioDirect             // each read and write is a request
	ioPassthrough        // the kernel uses the tree's file
)

// backing registers files of the tree with the kernel for passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH). The kernel
// opens the tree's file again for each open of ours, with the credentials that it was registered with, and
// reads, writes, maps and splices it without asking.
type backing struct {
	dev int
	off atomic.Bool // the kernel does not do it at all, or not for us
}

func (b *backing) connect(dev int) { b.dev = dev }

// struct fuse_backing_map and the ioctls of linux/fuse.h.
type backingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

const (
	devIocBackingOpen  = 0x4010e501
	devIocBackingClose = 0x4004e502
)

// open registers fd. EPERM: no CAP_SYS_ADMIN; ENOTTY, EINVAL: not in this kernel or not negotiated; EOPNOTSUPP: not
// this sort of file; ELOOP: the file system is stacked too deep already, see stackDepth.
func (b *backing) open(fd int) (int32, error) {
	m := backingMap{fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(b.dev), devIocBackingOpen, uintptr(unsafe.Pointer(&m)))
	switch errno {
	case 0:
		return int32(id), nil
	case unix.EPERM, unix.ENOTTY, unix.EINVAL:
		b.off.Store(true)
	}
	return 0, errno
}

// close gives an id back. Files that are open in passthrough mode keep the registration for themselves. It wants
// CAP_SYS_ADMIN, as open does; when it fails, the connection is gone, and the registration with it.
func (b *backing) close(t *threads, id int32) {
	_ = t.with(capSysAdmin, 0, func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(b.dev), devIocBackingClose, uintptr(unsafe.Pointer(&id)))
		return errno
	})
}

// stackDepth is what the kernel is told of how deep file systems may be stacked under us. On a host whose root is
// overlayfs (depth 1) that is 2, the limit, so no overlayfs can then be mounted over a directory of ours.
func (fs *tree) stackDepth() int {
	if fs.rootType == unix.OVERLAYFS_SUPER_MAGIC {
		return 2
	}
	return 1
}

// chooseIO fills the flags of an answer to OPEN or CREATE. The state's lock is held.
func (fs *tree) chooseIO(n *inode, s *openState, h *handle, locked bool, out *raw.OpenOut) {
	if len(s.handles) == 1 && s.io == ioPassthrough && h.writes && hasSetID(h.fd) {
		fs.endIO(s) // see firstIO
	}
	if s.io == ioUndecided {
		s.io = fs.firstIO(n, s, h)
	}
	switch s.io {
	case ioPassthrough:
		out.OpenFlags |= raw.FOPEN_PASSTHROUGH
		out.BackingID = s.backing
	case ioDirect:
		out.OpenFlags |= raw.FOPEN_DIRECT_IO
	case ioCached:
		if fs.unchanged(n, h) {
			out.OpenFlags |= raw.FOPEN_KEEP_CACHE
		}
	}
	// Each close(2) sends a FLUSH, for two ends: to drop the POSIX locks of the process, and to report errors of
	// earlier writes. A file that is open for reading only, that nobody has locks on, needs neither. If a lock is taken
	// by way of it later, it goes with the last descriptor at the latest, see released.
	if !h.writes && !locked {
		h.noFlush = true
		out.OpenFlags |= raw.FOPEN_NOFLUSH
	}
}

// firstIO decides for an inode that nothing is open on.
func (fs *tree) firstIO(n *inode, s *openState, h *handle) ioMode {
	if n.mnt.flags&volatileData != 0 {
		return ioDirect
	}
	if !fs.opts.Passthrough || fs.backing.off.Load() || h.writes && hasSetID(h.fd) {
		return ioCached
	}
	// Writes in passthrough mode are done with the credentials of this thread. With CAP_FSETID nobody's write would
	// clear set-id bits. Without it everybody's does; so files that have them when they are opened for writing go
	// through the server, which is told what the writer may. What remains: root clears the bits too if it writes to
	// a file that got them while it was open. Where nobody writes, it makes no difference.
	drop := capFSETID
	if !fs.opts.Writable {
		drop = 0
	}
	err := fs.threads.with(capSysAdmin, drop, func() (err error) {
		s.backing, err = fs.backing.open(h.fd)
		return err
	})
	if err != nil {
		return ioCached
	}
	return ioPassthrough
}

// unchanged says whether the file is what it was when it was opened last, so that its pages in memory are good.
func (fs *tree) unchanged(n *inode, h *handle) bool {
	var st unix.Stat_t
	if unix.Fstat(h.fd, &st) != nil {
		return false
	}
	stamp := uint64(st.Size)
	for _, v := range []int64{st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec} {
		stamp = (stamp ^ uint64(v)) * 0x9e3779b97f4a7c15
	}
	return n.stamp.Swap(stamp) == stamp
}

// endIO undoes firstIO. No file is open on the inode, or only the one that is being opened.
func (fs *tree) endIO(s *openState) {
	if s.io == ioPassthrough {
		fs.backing.close(fs.threads, s.backing)
	}
	s.io = ioUndecided
}
