package fuse

import (
	"sync"
	"sync/atomic"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file or directory of the session.
type handle struct {
	n    *inode
	fd   int // -1 for made-up entries
	fh   uint64
	refs int // guarded by handles.mu; one is the table's

	dir *dirStream // of a directory

	lockers []uint64 // who took POSIX locks by way of this; guarded by locks.mu

	writes  bool        // open for writing
	noFlush bool        // the kernel was told to send no FLUSH
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
	if last && h.fd >= 0 {
		unix.Close(h.fd)
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

// opens are the inodes with open files.
type opens struct {
	mu     sync.Mutex
	states map[*inode]*openState
}

// openState is shared by all open files of one inode.
type openState struct {
	mu      sync.Mutex
	refs    int // guarded by opens.mu
	handles []*handle
	io      ioMode
	backing int32
}

func (o *opens) init() { o.states = make(map[*inode]*openState) }

// enter returns the state of an inode that is being opened, to be given back with leave.
func (o *opens) enter(n *inode) *openState {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.states[n]
	if s == nil {
		s = &openState{}
		o.states[n] = s
	}
	s.refs++
	return s
}

// peek returns the state of an inode, or nil.
func (o *opens) peek(n *inode) *openState {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.states[n]
}

// leave gives a state back and reports whether nothing is open any more.
func (o *opens) leave(n *inode, s *openState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.refs--
	if s.refs == 0 {
		delete(o.states, n)
	}
}

// lent is a descriptor for the length of one operation.
type lent struct {
	fs *tree
	fd int
	d  *desc
	h  *handle
}

func (l *lent) release() {
	if l.d != nil {
		l.fs.descs.put(l.d)
	}
	if l.h != nil {
		l.fs.handles.put(l.h)
	}
}

// lend returns a descriptor of an inode: that of the open file that the request names; one of the inode; or, if the
// file has been removed from the tree by others, of any file that is open on it.
func (fs *tree) lend(n *inode, fh uint64, hasFh bool) (lent, error) {
	if hasFh {
		if h := fs.handles.get(fh); h != nil && h.n == n && h.fd >= 0 {
			return lent{fs: fs, fd: h.fd}, nil
		}
	}
	d, err := fs.descs.borrow(n)
	if err == nil {
		return lent{fs: fs, fd: d.fd, d: d}, nil
	}
	s := fs.opens.peek(n)
	if s == nil {
		return lent{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.handles {
		if fs.handles.hold(h) {
			return lent{fs: fs, fd: h.fd, h: h}, nil
		}
	}
	return lent{}, err
}

// opened registers a file that was opened and decides how the kernel does its input and output.
func (fs *tree) opened(n *inode, fd int, flags uint32, out *raw.OpenOut) *handle {
	h := &handle{n: n, fd: fd, writes: flags&unix.O_ACCMODE != unix.O_RDONLY}
	locked := fs.locks.any(n)
	s := fs.opens.enter(n)
	s.mu.Lock()
	fs.handles.add(h)
	s.handles = append(s.handles, h)
	out.Fh = h.fh
	fs.chooseIO(n, s, h, locked, out)
	s.mu.Unlock()
	return h
}

// Release closes a file.
func (fs *tree) Release(_ <-chan struct{}, in *raw.ReleaseIn) {
	h := fs.handles.remove(in.Fh)
	if h == nil {
		return
	}
	fs.locks.released(h)
	if s := fs.opens.peek(h.n); s != nil && h.dir == nil {
		s.mu.Lock()
		for i, other := range s.handles {
			if other == h {
				s.handles = append(s.handles[:i], s.handles[i+1:]...)
				break
			}
		}
		if len(s.handles) == 0 {
			fs.endIO(s)
		}
		s.mu.Unlock()
		fs.opens.leave(h.n, s)
	}
	fs.handles.put(h)
}
