package fuse

import (
	"sync"

	"golang.org/x/sys/unix"
)

// descs lends descriptors for inodes. Up to limit of them are kept open for the next use, the least recently used are
// closed first; an inode whose descriptor was closed is opened again by its file handle or its place.
//
// Kept beyond the limit are those of inodes that nothing else leads to any more: they were unlinked.
type descs struct {
	mu    sync.Mutex
	lru   desc // head of a ring of those that may be closed: next is the most recent
	count int  // in the ring
	now   uint32
	limit int
	open  func(*inode) (int, error) // opens an inode again
}

// desc is an O_PATH descriptor of an inode.
type desc struct {
	fd         int
	refs       int
	gone       bool // close when refs is 0
	used       uint32
	prev, next *desc
	n          *inode
}

func newDescs(limit int, open func(*inode) (int, error)) *descs {
	d := &descs{limit: limit, open: open}
	d.lru.next, d.lru.prev = &d.lru, &d.lru
	return d
}

// borrow returns a descriptor for n, to be given back with put.
func (ds *descs) borrow(n *inode) (*desc, error) {
	if d := ds.borrowOpen(n); d != nil {
		return d, nil
	}
	fd, err := ds.open(n)
	if err != nil {
		return nil, err
	}
	return ds.keep(n, fd, 1), nil
}

// borrowOpen is borrow for an inode that has a descriptor, or nil.
func (ds *descs) borrowOpen(n *inode) *desc {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := n.desc
	if d == nil {
		return nil
	}
	d.refs++
	d.used = ds.now
	if d.next != nil && ds.lru.next != d {
		ds.unlink(d)
		ds.link(d)
	}
	return d
}

// offer gives fd, an O_PATH descriptor of n, to be kept or closed.
func (ds *descs) offer(n *inode, fd int) { ds.keep(n, fd, 0) }

func (ds *descs) keep(n *inode, fd, refs int) *desc {
	ds.mu.Lock()
	if d := n.desc; d != nil { // somebody else was faster
		d.refs += refs
		ds.mu.Unlock()
		unix.Close(fd)
		return d
	}
	d := &desc{fd: fd, refs: refs, n: n}
	n.desc = d
	var old []int
	if n.mayClose() {
		ds.link(d)
		old = ds.trim()
	}
	ds.mu.Unlock()
	for _, fd := range old {
		unix.Close(fd)
	}
	return d
}

// trim takes the least recently used descriptors out until the limit holds, and returns those to close.
func (ds *descs) trim() (fds []int) {
	for d := ds.lru.prev; ds.count > ds.limit && d != &ds.lru; {
		prev := d.prev
		ds.unlink(d)
		d.n.desc = nil
		if d.refs == 0 {
			fds = append(fds, d.fd)
		} else {
			d.gone = true
		}
		d = prev
	}
	return fds
}

// put gives back what borrow lent.
func (ds *descs) put(d *desc) {
	ds.mu.Lock()
	d.refs--
	last := d.gone && d.refs == 0
	ds.mu.Unlock()
	if last {
		unix.Close(d.fd)
	}
}

// pin keeps the descriptor d of n open until n is forgotten. unpin undoes that.
func (ds *descs) pin(n *inode, d *desc) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if n.desc == nil && d.gone {
		n.desc, d.gone = d, false
	}
	n.pinned = true
	if n.desc != nil && n.desc.next != nil {
		ds.unlink(n.desc)
	}
}

func (ds *descs) unpin(n *inode) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	n.pinned = false
	if n.desc != nil && n.desc.next == nil && n.mayClose() {
		ds.link(n.desc)
	}
}

// place notes where an inode is, if it has no handle.
func (ds *descs) place(n, dir *inode, name string) {
	if n.handle != "" {
		return
	}
	ds.mu.Lock()
	if p := n.place; p == nil || p.dir != dir.node || p.name != name {
		n.place = &place{dir.node, name}
	}
	n.pinned = false
	var old []int
	if n.desc != nil && n.desc.next == nil {
		ds.link(n.desc)
		old = ds.trim()
	}
	ds.mu.Unlock()
	for _, fd := range old {
		unix.Close(fd)
	}
}

func (ds *descs) placeOf(n *inode) *place {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return n.place
}

// drop closes the descriptor of an inode that was forgotten.
func (ds *descs) drop(n *inode) {
	ds.mu.Lock()
	d := n.desc
	n.desc = nil
	if d == nil {
		ds.mu.Unlock()
		return
	}
	if d.next != nil {
		ds.unlink(d)
	}
	d.gone = true
	last := d.refs == 0
	ds.mu.Unlock()
	if last {
		unix.Close(d.fd)
	}
}

// idle is how many calls of age a descriptor lives unused.
const idle = 2

// age closes descriptors that were not used lately. An O_PATH descriptor keeps a file that the host removed on its disk,
// and a file system that the host wants to unmount busy; not for long, then. The transport calls it once a second.
func (ds *descs) age() {
	var fds []int
	ds.mu.Lock()
	ds.now++
	for d := ds.lru.prev; d != &ds.lru && ds.now-d.used > idle; {
		prev := d.prev
		if d.refs == 0 && (d.n.handle != "" || !d.n.isDir()) { // a directory's place can change under who is in it
			ds.unlink(d)
			d.n.desc = nil
			fds = append(fds, d.fd)
		}
		d = prev
	}
	ds.mu.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (ds *descs) link(d *desc) {
	d.used = ds.now
	d.next, d.prev = ds.lru.next, &ds.lru
	d.next.prev, ds.lru.next = d, d
	ds.count++
}

func (ds *descs) unlink(d *desc) {
	d.prev.next, d.next.prev = d.next, d.prev
	d.next, d.prev = nil, nil
	ds.count--
}
