package fuse

import (
	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a directory. "." and ".." come from open_by_handle_at(2) in the session (FUSE_EXPORT_SUPPORT).
func (fs *tree) Lookup(_ <-chan struct{}, h *raw.InHeader, name string, out *raw.EntryOut) raw.Status {
	dir := fs.inodes.get(h.NodeId)
	if dir == nil && name == "." {
		return status(fs.lookupBuried(h.NodeId, out))
	}
	if dir == nil {
		return raw.Status(unix.ESTALE)
	}
	var err error
	var b belief
	switch {
	case name == ".":
		err = fs.lookupSelf(dir, out)
	case name == "..":
		err = fs.lookupParent(dir, out)
	case !validName(name):
		return raw.EINVAL
	case dir.made:
		err = fs.lookupChild(dir, -1, name, b, out)
	default:
		d, e := fs.descs.borrow(dir)
		if e != nil {
			return status(e)
		}
		b = fs.believe(dir, d.fd)
		err = fs.lookupChild(dir, d.fd, name, b, out)
		fs.descs.put(d)
	}
	if err == unix.ENOENT && b != 0 && !fs.watcher.missed(dir, name) {
		b = 0
	}
	if timeout := fs.timeout(fs.cache.Negative, b); err == unix.ENOENT && timeout > 0 {
		// An answer with node id 0 is an ENOENT that the kernel may remember.
		*out = raw.EntryOut{}
		out.SetEntryTimeout(timeout)
		return raw.OK
	}
	return status(err)
}

// lookupChild fills out for a name in a directory, of which fd is a descriptor, and counts one lookup.
func (fs *tree) lookupChild(dir *inode, fd int, name string, b belief, out *raw.EntryOut) error {
	x := dir.child(name)
	if x != nil && (dir.made || fs.isMade(x)) {
		fs.enterMade(x, out)
		return nil
	}
	n, stx, err := fs.realChild(dir, fd, name)
	if x != nil {
		// On the way to a made-up entry there must be directories.
		if err == nil && !n.isDir() {
			fs.forget(n.node, 1)
			err = unix.ENOENT
		}
		if err == unix.ENOENT {
			fs.stick(x)
			fs.enterMade(x, out)
			return nil
		}
	}
	if err != nil {
		return err
	}
	if x != nil {
		n.extra.Store(x)
	}
	if n.mnt != dir.mnt {
		b = 0 // the mount may go
	}
	n.told.Store(b != 0 && !n.isDir() && stx.Nlink == 1)
	fs.enter(n, &stx, b, out)
	return nil
}

// realChild finds a name in the tree.
func (fs *tree) realChild(dir *inode, fd int, name string) (*inode, unix.Statx_t, error) {
	if dir.made || dir.mnt.flags&opaque != 0 {
		return nil, unix.Statx_t{}, unix.ENOENT
	}
	var stx unix.Statx_t
	if n, err := fs.knownChild(dir, fd, name, &stx); n != nil || err != nil {
		return n, stx, err
	}
	child, err := openPath(fd, name)
	if err != nil {
		return nil, stx, err
	}
	n, stx, err := fs.inodeFor(child)
	if err == nil {
		fs.descs.place(n, dir, name)
	}
	return n, stx, err
}

// lookupSelf answers for an inode by its number alone.
func (fs *tree) lookupSelf(n *inode, out *raw.EntryOut) error {
	if n.made {
		fs.enterMade(n.extra.Load(), out)
		return nil
	}
	d, err := fs.descs.borrow(n)
	if err != nil {
		return err
	}
	defer fs.descs.put(d)
	var stx unix.Statx_t
	if err := statFD(d.fd, &stx); err != nil {
		return err
	}
	if n.node != rootNode && !fs.inodes.again(n) {
		return unix.ESTALE
	}
	fs.enter(n, &stx, 0, out)
	return nil
}

// lookupBuried answers for a node id that the kernel forgot a short while ago.
func (fs *tree) lookupBuried(node uint64, out *raw.EntryOut) error {
	old := fs.inodes.buried(node)
	if old == nil || !fs.mounts.hold(old.mnt) {
		return unix.ESTALE
	}
	defer fs.mounts.put(old.mnt)
	var fd int
	err := fs.threads.with(capDACReadSearch, 0, func() (err error) {
		fd, err = openHandle(old.mnt.fd, old.handle)
		return err
	})
	if err != nil {
		return err
	}
	n, stx, err := fs.inodeFor(fd)
	if err != nil {
		return err
	}
	if n.node != node {
		fs.forget(n.node, 1)
		return unix.ESTALE
	}
	fs.enter(n, &stx, 0, out)
	return nil
}

// lookupParent answers with the parent of a directory. A directory may have been moved out of the tree by the host, so
// only a parent that was reached from the root before is good.
func (fs *tree) lookupParent(n *inode, out *raw.EntryOut) error {
	if n.node == rootNode || n.made || !n.isDir() {
		return unix.ESTALE
	}
	d, err := fs.descs.borrow(n)
	if err != nil {
		return err
	}
	defer fs.descs.put(d)
	fd, err := unix.Openat(d.fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var buf handleBuffer
	mnt, handle, stx, err := fs.identify(fd, &buf)
	if err != nil {
		return err
	}
	parent, fresh := fs.inodes.known(inoKey{mnt, stx.Ino}, handle)
	if !fresh {
		fs.mounts.put(mnt)
	}
	if parent == nil {
		return unix.ESTALE
	}
	fs.enter(parent, &stx, 0, out)
	return nil
}

// enter fills the answer for an inode of the tree.
func (fs *tree) enter(n *inode, stx *unix.Statx_t, b belief, out *raw.EntryOut) {
	*out = raw.EntryOut{NodeId: n.node, Generation: fs.gen}
	entry := fs.timeout(fs.cache.Entry, b)
	if entry > fs.cache.Entry {
		n.named.Store(true)
	}
	out.SetEntryTimeout(entry)
	out.SetAttrTimeout(fs.attrTimeout(n, b))
	fs.fill(n, stx, &out.Attr)
}

// enterMade fills the answer for a made-up entry and counts one lookup.
func (fs *tree) enterMade(x *extra, out *raw.EntryOut) {
	n := fs.makeUp(x)
	*out = raw.EntryOut{NodeId: n.node, Generation: fs.gen}
	out.SetEntryTimeout(Forever)
	out.SetAttrTimeout(Forever)
	fs.fillMade(x, &out.Attr)
}

// Forget takes back lookups.
func (fs *tree) Forget(node, nlookup uint64) { fs.forget(node, nlookup) }
