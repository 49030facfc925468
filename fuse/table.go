package fuse

import (
	"runtime/debug"
	"sync"
)

// table holds the inodes that the kernel remembers, by node id and by identity.
//
// A node id is a slot in an array and, in its upper half, a number that tells the uses of the slot apart. So a node id
// means one inode for as long as the file system lives: NFS-style handles that a session took of its own mount
// (name_to_handle_at(2) encodes the node id) never lead to another file.
type table struct {
	mu     sync.RWMutex
	chunks []*chunk
	free   []uint32
	uses   uint32
	byIno  map[inoKey]*inode // those with other handles in a chain
	count  int               // in byIno and its chains
	peak   int               // most inodes since byIno was made
	shrunk bool              // since giveBack looked
	graves graves
}

// graves remember inodes that the kernel forgot a short while ago, so that handles that a session took of them
// (name_to_handle_at(2) on our mount) work for longer than the kernel's caches: it has nothing but the node id then.
// Their slots stay reserved. They do not keep their mount in use.
type graves struct {
	byNode map[uint64]*inode
	byKey  map[key]*inode
	ring   [1 << 13]*inode
	next   int
}

const (
	chunkBits = 10
	chunkSize = 1 << chunkBits
)

// chunk is a piece of the array of slots, so that the array grows without being copied.
type chunk [chunkSize]*inode

func newTable() *table {
	t := &table{byIno: make(map[inoKey]*inode)}
	t.graves.byNode, t.graves.byKey = make(map[uint64]*inode), make(map[key]*inode)
	t.chunks = append(t.chunks, new(chunk))
	for slot := uint32(chunkSize - 1); slot > rootNode; slot-- {
		t.free = append(t.free, slot) // slots 0 and 1 are no node id and the root
	}
	return t
}

// get returns the inode of a node id, or nil.
func (t *table) get(node uint64) *inode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.at(node)
}

func (t *table) at(node uint64) *inode {
	slot := uint32(node)
	if int(slot>>chunkBits) >= len(t.chunks) {
		return nil
	}
	if n := t.chunks[slot>>chunkBits][slot%chunkSize]; n != nil && n.node == node {
		return n
	}
	return nil
}

// find returns the inode with this identity, or nil.
func (t *table) find(k inoKey, handle []byte) *inode {
	for n := t.byIno[k]; n != nil; n = n.next {
		if n.handle == string(handle) {
			return n
		}
	}
	return nil
}

// link makes an inode known by its identity.
func (t *table) link(n *inode) {
	n.next = t.byIno[n.inoKey]
	t.byIno[n.inoKey] = n
	t.count++
	t.peak = max(t.peak, t.count)
}

// unlink undoes link.
func (t *table) unlink(n *inode) {
	first := t.byIno[n.inoKey]
	switch {
	case first == n && n.next == nil:
		delete(t.byIno, n.inoKey)
	case first == n:
		t.byIno[n.inoKey] = n.next
	default:
		for first.next != n {
			first = first.next
		}
		first.next = n.next
	}
	n.next = nil
	t.count--
}

// lookup finds or makes the inode with this identity and counts one lookup. fresh: it was made, and holds the caller's
// reference to its mount.
func (t *table) lookup(k inoKey, handle []byte, kind uint32, birth int64) (n *inode, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.find(k, handle); n != nil && n.kind == kind {
		n.nlookup++
		n.birth = birth
		return n, false
	}
	if n := t.graves.byKey[key{k, string(handle)}]; n != nil && n.kind == kind {
		n = t.revive(n)
		n.birth = birth
		return n, true
	}
	n = &inode{key: key{k, string(handle)}, kind: kind, birth: birth}
	t.add(n)
	return n, true
}

// born returns the inode with this number and time of birth, and counts one lookup, or nil. See birthOf.
func (t *table) born(k inoKey, kind uint32, birth int64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := t.byIno[k]; n != nil; n = n.next {
		if n.birth == birth && n.kind == kind {
			n.nlookup++
			return n
		}
	}
	return nil
}

// known is lookup for an inode that the kernel knows, or did a short while ago; else it returns nil.
func (t *table) known(k inoKey, handle []byte) (n *inode, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.find(k, handle); n != nil {
		n.nlookup++
		return n, false
	}
	if n := t.graves.byKey[key{k, string(handle)}]; n != nil {
		return t.revive(n), true
	}
	return nil, false
}

// buried returns what a node id stood for that the kernel forgot a short while ago, or nil.
func (t *table) buried(node uint64) *inode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.graves.byNode[node]
}

// insert puts a made-up inode into the table and counts one lookup.
func (t *table) insert(n *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(n)
}

// add puts a new inode into the table and counts one lookup.
func (t *table) add(n *inode) {
	if len(t.free) == 0 {
		base := uint32(len(t.chunks)) << chunkBits
		t.chunks = append(t.chunks, new(chunk))
		for i := uint32(chunkSize); i > 0; i-- {
			t.free = append(t.free, base+i-1)
		}
	}
	slot := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.uses++
	n.node = uint64(t.uses)<<32 | uint64(slot)
	n.nlookup = 1
	t.chunks[slot>>chunkBits][slot%chunkSize] = n
	if !n.made {
		t.link(n)
	}
}

// addRoot puts the root into its slot. The kernel never forgets the root.
func (t *table) addRoot(n *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.node, n.nlookup = rootNode, 1
	t.chunks[0][rootNode] = n
	t.link(n)
}

// peek returns the inode with this identity without counting, or nil.
func (t *table) peek(k inoKey, handle []byte) *inode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.find(k, handle)
}

// withNumber calls f for each inode with this number.
func (t *table) withNumber(k inoKey, f func(*inode)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for n := t.byIno[k]; n != nil; n = n.next {
		f(n)
	}
}

// again counts one more lookup of an inode if it is still in the table.
func (t *table) again(n *inode) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at(n.node) != n {
		return false
	}
	n.nlookup++
	return true
}

// forget takes back lookups and returns the inode if it was removed from the table with them.
func (t *table) forget(node, nlookup uint64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.at(node)
	if n == nil || node == rootNode {
		return nil
	}
	if n.nlookup > nlookup {
		n.nlookup -= nlookup
		return nil
	}
	n.nlookup = 0
	slot := uint32(node)
	t.chunks[slot>>chunkBits][slot%chunkSize] = nil
	if !n.made {
		t.unlink(n)
		t.shrink()
	}
	if n.made || n.handle == "" {
		t.free = append(t.free, slot)
	} else {
		t.bury(n)
	}
	return n
}

// bury remembers n in the place of what was forgotten longest ago.
func (t *table) bury(n *inode) {
	g := &t.graves
	if old := g.ring[g.next]; old != nil && g.byNode[old.node] == old {
		t.unbury(old)
		t.free = append(t.free, uint32(old.node))
	}
	g.ring[g.next] = n
	g.next = (g.next + 1) % len(g.ring)
	g.byNode[n.node] = n
	if old := g.byKey[n.key]; old == nil {
		g.byKey[n.key] = n
	}
}

func (t *table) unbury(n *inode) {
	delete(t.graves.byNode, n.node)
	if t.graves.byKey[n.key] == n {
		delete(t.graves.byKey, n.key)
	}
}

// revive puts a forgotten inode back under its node id. Its place in the ring stays, and means nothing any more.
func (t *table) revive(old *inode) *inode {
	t.unbury(old)
	n := &inode{key: old.key, node: old.node, nlookup: 1, kind: old.kind}
	n.extra.Store(old.extra.Load())
	slot := uint32(n.node)
	t.chunks[slot>>chunkBits][slot%chunkSize] = n
	t.link(n)
	return n
}

// shrink gives memory back after the kernel dropped its caches: a Go map never gets smaller by itself.
func (t *table) shrink() {
	if t.peak < 1<<14 || t.count > t.peak/8 {
		return
	}
	m := make(map[inoKey]*inode, len(t.byIno))
	for k, n := range t.byIno {
		m[k] = n
	}
	t.byIno, t.peak = m, t.count
	t.shrunk = true
}

// giveBack lets the system have the memory of inodes that were forgotten in great number. It is called now and then.
func (t *table) giveBack() {
	t.mu.Lock()
	shrunk := t.shrunk
	t.shrunk = false
	t.mu.Unlock()
	if shrunk {
		debug.FreeOSMemory()
	}
}

// len returns the number of inodes in the table.
func (t *table) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.count
}

// each calls f for each inode.
func (t *table) each(f func(*inode)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, c := range t.chunks {
		for _, n := range c {
			if n != nil {
				f(n)
			}
		}
	}
}
