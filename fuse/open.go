package fuse

import (
	"sync"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// opens are the inodes with open files, and those that had some a short while ago.
//
// An open of a file that is in passthrough mode already, for reading, needs nothing of the tree: the kernel opens
// the tree's file itself. So what such opens share, a descriptor and the registration with the kernel, is kept for a
// while after the last of them was closed: programs open the same files again and again.
type opens struct {
	mu     sync.Mutex
	states map[*inode]*openState
	idle   openState // head of a ring of those without open files: next is the most recent
	count  int       // in the ring
	limit  int
	now    uint32
}

// openState is shared by all open files of one inode.
type openState struct {
	mu      sync.Mutex
	handles []*handle
	io      ioMode
	backing int32 // with ioPassthrough: the id that the kernel gave
	fd      int   // of the tree's file, for reading, in passthrough mode; -1: none yet

	// Guarded by opens.mu.
	refs       int
	n          *inode
	used       uint32
	prev, next *openState
}

func (o *opens) init(limit int) {
	o.states = make(map[*inode]*openState)
	o.idle.prev, o.idle.next = &o.idle, &o.idle
	o.limit = limit
}

// enter returns the state of an inode that is being opened, to be given back with leave.
func (o *opens) enter(n *inode) *openState {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.hold(n)
	if s == nil {
		s = &openState{n: n, fd: -1, refs: 1}
		o.states[n] = s
	}
	return s
}

// find is enter for an inode that has a state, or nil.
func (o *opens) find(n *inode) *openState {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hold(n)
}

func (o *opens) hold(n *inode) *openState {
	s := o.states[n]
	if s == nil {
		return nil
	}
	if s.refs == 0 {
		o.unlink(s)
	}
	s.refs++
	return s
}

func (o *opens) unlink(s *openState) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
	o.count--
}

// put gives a state back, and returns those to be ended.
func (o *opens) put(s *openState) (ended []*openState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.refs--; s.refs > 0 {
		return nil
	}
	if s.io != ioPassthrough { // nothing refers to s any more, so it needs no lock
		delete(o.states, s.n)
		return []*openState{s}
	}
	s.used = o.now
	s.next, s.prev = o.idle.next, &o.idle
	s.next.prev, o.idle.next = s, s
	o.count++
	return o.take(func(*openState) bool { return o.count > o.limit })
}

// take takes idle states out, the oldest first, as long as old says so.
func (o *opens) take(old func(*openState) bool) (ended []*openState) {
	for s := o.idle.prev; s != &o.idle && old(s); s = o.idle.prev {
		o.unlink(s)
		delete(o.states, s.n)
		ended = append(ended, s)
	}
	return ended
}

// drop takes out the state of an inode that the kernel forgot, which has no open files.
func (o *opens) drop(n *inode) *openState {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.states[n]
	if s == nil || s.refs > 0 {
		return nil // an operation that was under way ends it
	}
	o.unlink(s)
	delete(o.states, n)
	return s
}

// leave gives back what enter and find returned.
func (fs *tree) leave(s *openState) {
	for _, s := range fs.opens.put(s) {
		fs.end(s)
	}
}

// end lets go of what a state holds, after nobody refers to it any more.
func (fs *tree) end(s *openState) {
	fs.endIO(s)
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
}

// ageOpens ends what was not opened again lately, for the reasons that descs.age has. The transport calls it once a
// second.
func (fs *tree) ageOpens() {
	o := &fs.opens
	o.mu.Lock()
	o.now++
	ended := o.take(func(s *openState) bool { return o.now-s.used > idle })
	o.mu.Unlock()
	for _, s := range ended {
		fs.end(s)
	}
}

// closeOpens ends all states. Nothing is open any more.
func (fs *tree) closeOpens() {
	fs.opens.mu.Lock()
	defer fs.opens.mu.Unlock()
	for n, s := range fs.opens.states {
		delete(fs.opens.states, n)
		fs.end(s)
	}
}

// opened registers a file that was opened and decides how the kernel does its input and output.
func (fs *tree) opened(n *inode, fd int, flags uint32, out *raw.OpenOut) {
	h := &handle{n: n, fd: fd, lock: -1, writes: flags&unix.O_ACCMODE != unix.O_RDONLY}
	s := fs.opens.enter(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	fs.join(s, h, out)
	if s.io == ioPassthrough && s.fd < 0 && fs.mayShare(flags) {
		s.fd, h.shared = fd, true
	}
	fs.handles.add(h)
	out.Fh = h.fh
}

// openShared opens a file by way of what is there of earlier opens, if that is possible.
func (fs *tree) openShared(n *inode, flags uint32, out *raw.OpenOut) bool {
	if !fs.mayShare(flags) {
		return false
	}
	s := fs.opens.find(n)
	if s == nil {
		return false
	}
	s.mu.Lock()
	if s.io != ioPassthrough || s.fd < 0 {
		s.mu.Unlock()
		fs.leave(s)
		return false
	}
	h := &handle{n: n, fd: s.fd, lock: -1, shared: true}
	fs.join(s, h, out)
	fs.handles.add(h)
	out.Fh = h.fh
	s.mu.Unlock()
	return true
}

// mayShare says whether opens with these flags can have one descriptor. For a Caller, the tree's kernel checks each open.
func (fs *tree) mayShare(flags uint32) bool {
	return flags&(unix.O_ACCMODE|unix.O_TRUNC) == unix.O_RDONLY && fs.threads.caller == nil
}

// join adds an open file to a state that is held and locked.
func (fs *tree) join(s *openState, h *handle, out *raw.OpenOut) {
	h.s = s
	s.handles = append(s.handles, h)
	fs.chooseIO(h.n, s, h, fs.locks.any(h.n), out)
}

// Release closes a file.
func (fs *tree) Release(_ <-chan struct{}, in *raw.ReleaseIn) {
	h := fs.handles.remove(in.Fh)
	if h == nil {
		return
	}
	fs.locks.released(h)
	if h.s == nil {
		fs.handles.put(h)
		return
	}
	fs.handles.put(h)
	// Not before its locks are gone, see flock.
	h.s.mu.Lock()
	h.s.remove(h)
	h.s.mu.Unlock()
	fs.locks.tell()
	fs.leave(h.s)
}

func (s *openState) remove(h *handle) {
	for i, other := range s.handles {
		if other == h {
			s.handles = append(s.handles[:i], s.handles[i+1:]...)
			return
		}
	}
}
