package fuse

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// key is the identity of an inode of the tree: all that Linux has to tell two files apart.
type key struct {
	mnt    *mount
	ino    uint64
	handle string // type and bytes of the file handle; empty if the file system has none
}

// inode is what a node id, the kernel's number for a file, stands for. One exists for each that the kernel remembers,
// up to millions, so it is kept small: TestInodeMemory holds the figure.
type inode struct {
	key
	node    uint64
	nlookup uint64                // how often the kernel was told of this inode; guarded by table.mu
	desc    *desc                 // a descriptor, if there is one; guarded by descs.mu
	extra   atomic.Pointer[extra] // entries made up below this directory, or, with made, the entry that this is
	stamp   atomic.Uint64         // of size and times when it was last opened, see unchanged
	kind    uint32                // S_IFMT of the mode; never changes
	pinned  bool                  // desc is kept until the inode is forgotten; guarded by descs.mu
	made    bool                  // exists in memory only
}

func (n *inode) isDir() bool { return n.kind == unix.S_IFDIR }

// identify finds out what fd, an O_PATH descriptor, is. The handle is a slice of buf.
func identify(fd int, buf *handleBuffer) (stx unix.Statx_t, handle []byte, err error) {
	if err = statFD(fd, &stx); err != nil {
		return stx, nil, err
	}
	handle, err = readHandle(fd, buf)
	if err != nil {
		// EOPNOTSUPP from a file system without handles, EOVERFLOW from one with longer ones than the kernel's limit.
		// Without a handle the descriptor itself is all there is to keep, see desc.go.
		return stx, nil, nil
	}
	return stx, handle, nil
}

// inodeFor returns the inode that fd is on and counts one lookup. It takes over fd, an O_PATH descriptor, also if it
// fails. The attributes that it read for that are returned for the answer.
func (fs *tree) inodeFor(fd int) (*inode, unix.Statx_t, error) {
	var buf handleBuffer
	stx, handle, err := identify(fd, &buf)
	if err != nil {
		unix.Close(fd)
		return nil, stx, err
	}
	mnt, err := fs.mounts.get(fd, &stx)
	if err != nil {
		unix.Close(fd)
		return nil, stx, err
	}
	if mnt.noHandles() {
		handle = nil
	}
	n, fresh := fs.inodes.lookup(mnt, stx.Ino, handle, uint32(stx.Mode)&unix.S_IFMT)
	if !fresh {
		fs.mounts.put(mnt) // n has its own reference
	}
	fs.descs.offer(n, fd)
	return n, stx, nil
}

// forget takes back lookups that the kernel was told of.
func (fs *tree) forget(node, nlookup uint64) {
	if n := fs.inodes.forget(node, nlookup); n != nil {
		fs.descs.drop(n)
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
