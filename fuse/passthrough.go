package fuse

import (
	raw "github.com/hanwen/go-fuse/v2/fuse"
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

// backing registers files of the tree with the kernel.
type backing struct{}

// chooseIO fills the flags of an answer to OPEN or CREATE. The state's lock is held.
func (fs *tree) chooseIO(n *inode, s *openState, h *handle, flags uint32, out *raw.OpenOut) {
	if s.io == ioUndecided {
		s.io = ioCached
		if n.mnt != nil && n.mnt.flags&volatileData != 0 {
			s.io = ioDirect
		}
	}
	if s.io == ioDirect {
		out.OpenFlags |= raw.FOPEN_DIRECT_IO
	}
}

// endIO is called when the last file open on an inode was closed. The state's lock is held.
func (fs *tree) endIO(s *openState) { s.io = ioUndecided }

func (b *backing) connect(dev int) {}
func (b *backing) disconnect()     {}

// stackDepth is what INIT answers for passthrough.
func (fs *tree) stackDepth() int { return 1 }
