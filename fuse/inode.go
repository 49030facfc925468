package fuse

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// key is the identity of an inode of the tree: all that Linux has to tell two files apart.
type key struct {
	inoKey
	handle string // type and bytes of the file handle; empty if the file system has none
}

// inoKey is what tells two files apart that exist at the same time.
type inoKey struct {
	mnt *mount
	ino uint64
}

// inode is what a node id, the kernel's number for a file, stands for. One exists for each that the kernel remembers,
// up to millions, so it is kept small: TestInodeMemory holds the figure.
type inode struct {
	key
	node    uint64
	nlookup uint64                  // how often the kernel was told of this inode; guarded by table.mu
	next    *inode                  // with the same number on the same mount; guarded by table.mu
	birth   int64                   // see birthOf; guarded by table.mu
	desc    *desc                   // a descriptor, if there is one; guarded by descs.mu
	place   *place                  // of one without a handle; guarded by descs.mu
	extra   atomic.Pointer[extra]   // entries made up below this directory, or, with made, the entry that this is
	watch   atomic.Pointer[watched] // a directory of which the host's changes are seen
	stamp   atomic.Uint64           // of size and times when it was last opened, see unchanged
	told    atomic.Bool             // a file whose changes are seen, by way of its directory
	named   atomic.Bool             // a name of it may be believed for long
	kind    uint32                  // S_IFMT of the mode; never changes
	pinned  bool                    // desc is kept until the inode is forgotten; guarded by descs.mu
	made    bool                    // exists in memory only
}

func (n *inode) isDir() bool { return n.kind == unix.S_IFDIR }

// mayClose says whether the inode can be opened again. descs.mu is held.
func (n *inode) mayClose() bool { return !n.pinned && (n.handle != "" || n.place != nil) }

// identify finds out what fd, an O_PATH descriptor, is, and counts a reference to the mount that it is on. The handle is
// a slice of buf; it is nil if there is none.
func (fs *tree) identify(fd int, buf *handleBuffer) (mnt *mount, handle []byte, stx unix.Statx_t, err error) {
	if err = statFD(fd, &stx); err != nil {
		return nil, nil, stx, err
	}
	if mnt, err = fs.mounts.get(fd, &stx); err != nil {
		return nil, nil, stx, err
	}
	if mnt.noHandles() {
		return mnt, nil, stx, nil
	}
	// EOPNOTSUPP from a file system without handles, EOVERFLOW from one with longer ones than the kernel's limit.
	if handle, err = readHandle(fd, buf); err != nil {
		handle = nil
	}
	return mnt, handle, stx, nil
}

// inodeFor returns the inode that fd is on and counts one lookup. It takes over fd, an O_PATH descriptor, also if it
// fails. The attributes that it read for that are returned for the answer.
func (fs *tree) inodeFor(fd int) (*inode, unix.Statx_t, error) {
	var buf handleBuffer
	mnt, handle, stx, err := fs.identify(fd, &buf)
	if err != nil {
		unix.Close(fd)
		return nil, stx, err
	}
	n, fresh := fs.inodes.lookup(inoKey{mnt, stx.Ino}, handle, uint32(stx.Mode)&unix.S_IFMT, mnt.birthOf(&stx))
	if !fresh {
		fs.mounts.put(mnt) // n has its own reference
	}
	fs.descs.offer(n, fd)
	return n, stx, nil
}

// birthOf returns the time of birth, in nanoseconds since 1970, of an inode that was just identified by its handle, or 0
// if it does not tell this inode from a later one with the same number.
//
// An inode number is used again after its file was removed, and the handle tells the two apart. Where nobody can set the
// time of birth, it does so as well: whatever gets the number later was born later than the moment at which this one
// was seen. So one statx(2) by name recognises an inode that is known (table.born), and no descriptor has to be opened
// for that. Of an inode younger than two seconds that is not sure: the kernel's clock for times of files has ticks of
// up to 10 ms, and may be set back a little.
func (m *mount) birthOf(stx *unix.Statx_t) int64 {
	birth := stampOf(stx)
	if m.flags&honestBirth == 0 || birth == 0 || time.Now().UnixNano()-birth < int64(2*time.Second) {
		return 0
	}
	return birth
}

// stampOf returns the time of birth as it is, or 0 if there is none.
func stampOf(stx *unix.Statx_t) int64 {
	if stx.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	return stx.Btime.Sec*int64(time.Second) + int64(stx.Btime.Nsec)
}

// knownChild finds a name in a directory, of which fd is a descriptor, if it leads to an inode that is known, on the
// mount of the directory, and recognised by the time of its birth; it counts one lookup. Else it returns nil.
func (fs *tree) knownChild(dir *inode, fd int, name string, stx *unix.Statx_t) (*inode, error) {
	m := dir.mnt
	if m.flags&honestBirth == 0 {
		return nil, nil
	}
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(fd, name, flags, statxMask, stx); err != nil {
		return nil, err
	}
	if stx.Mnt_id != m.id || unix.Mkdev(stx.Dev_major, stx.Dev_minor) != m.dev {
		return nil, nil
	}
	birth := stampOf(stx)
	if birth == 0 {
		return nil, nil
	}
	return fs.inodes.born(inoKey{m, stx.Ino}, uint32(stx.Mode)&unix.S_IFMT, birth), nil
}

// forget takes back lookups that the kernel was told of.
func (fs *tree) forget(node, nlookup uint64) {
	if n := fs.inodes.forget(node, nlookup); n != nil {
		fs.descs.drop(n)
		if n.watch.Load() != nil {
			fs.unwatch(n)
		}
		if s := fs.opens.drop(n); s != nil {
			fs.end(s)
		}
		if n.mnt != nil {
			fs.mounts.put(n.mnt)
		}
	}
}

// rootNode is FUSE_ROOT_ID.
const rootNode = 1
