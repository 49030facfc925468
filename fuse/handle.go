package fuse

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is an open file or directory of the session.
type handle struct {
	n    *inode
	fd   int // -1 for made-up entries
	fh   uint64
	refs int // guarded by handles.mu; one is the table's

	dir *dirStream // of a directory
	s   *openState // of a file of the tree

	content *content // of a file of an imageTree, in place of n

	lockers []uint64 // who took POSIX locks by way of this; guarded by locks.mu

	shared bool       // fd is that of the openState
	mu     sync.Mutex // guards lock
	lock   int        // with shared: a descriptor of this open file alone for flock(2), once there was need; else -1

	writes  bool        // open for writing
	noFlush bool        // the kernel was told to send no FLUSH
	flocked atomic.Bool // there was a flock(2) lock
	wrote   atomic.Bool // something may be on its way to the disk
}

// locker notes who took a POSIX lock.
func (h *handle) locker(owner uint64) {
	for _, o := range h.lockers {
		if o == owner {
			return
		}
	}
	h.lockers = append(h.lockers, owner)
}

// handles are all open files, by the number that the kernel was given.
type handles struct {
	mu   sync.RWMutex
	byFh map[uint64]*handle
	last uint64
}

func (hs *handles) init() { hs.byFh = make(map[uint64]*handle) }

// add gives h a number. Numbers are not used twice.
func (hs *handles) add(h *handle) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.last++
	h.fh, h.refs = hs.last, 1
	hs.byFh[h.fh] = h
}

// get returns an open handle, or nil. The kernel does not release a handle while a request that names it is under way,
// so the handle of a request's own needs no reference.
func (hs *handles) get(fh uint64) *handle {
	hs.mu.RLock()
	defer hs.mu.RUnlock()
	return hs.byFh[fh]
}

// hold counts a reference to a handle unless it is being closed.
func (hs *handles) hold(h *handle) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.refs == 0 {
		return false
	}
	h.refs++
	return true
}

// put gives a reference back and closes the handle with the last.
func (hs *handles) put(h *handle) {
	hs.mu.Lock()
	h.refs--
	last := h.refs == 0
	hs.mu.Unlock()
	if !last {
		return
	}
	if h.fd >= 0 && !h.shared {
		unix.Close(h.fd)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shared && h.lock >= 0 {
		unix.Close(h.lock)
	}
}

// remove takes a handle out of the table and gives the table's reference back.
func (hs *handles) remove(fh uint64) *handle {
	hs.mu.Lock()
	h := hs.byFh[fh]
	delete(hs.byFh, fh)
	hs.mu.Unlock()
	return h
}

func (hs *handles) closeAll() {
	hs.mu.Lock()
	var all []*handle
	for fh, h := range hs.byFh {
		all = append(all, h)
		delete(hs.byFh, fh)
	}
	hs.mu.Unlock()
	for _, h := range all {
		hs.put(h)
	}
}

// lent is a descriptor for the length of one operation.
type lent struct {
	fs *tree
	n  *inode
	fd int
	d  *desc
	h  *handle
	s  *openState
}

func (l *lent) release() {
	if l.d != nil {
		l.fs.descs.put(l.d)
	}
	if l.h != nil {
		l.fs.handles.put(l.h)
	}
	if l.s != nil {
		l.fs.leave(l.s)
	}
}

// lend returns a descriptor of an inode: that of the open file that the request names; one of the inode; or, if the
// file has been removed from the tree by others, of any file that is open on it.
func (fs *tree) lend(n *inode, fh uint64, hasFh bool) (lent, error) {
	if hasFh {
		if h := fs.handles.get(fh); h != nil && h.n == n && h.fd >= 0 {
			return lent{fs: fs, n: n, fd: h.fd}, nil
		}
	}
	d, err := fs.descs.borrow(n)
	if err == nil {
		return lent{fs: fs, n: n, fd: d.fd, d: d}, nil
	}
	s := fs.opens.find(n)
	if s == nil {
		return lent{}, err
	}
	l := lent{fs: fs, n: n, s: s, fd: -1}
	s.mu.Lock()
	if s.fd >= 0 {
		l.fd = s.fd
	}
	for _, h := range s.handles {
		if l.fd < 0 && fs.handles.hold(h) {
			l.fd, l.h = h.fd, h
		}
	}
	s.mu.Unlock()
	if l.fd < 0 {
		l.release()
		return lent{}, err
	}
	return l, nil
}
