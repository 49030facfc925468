package fuse

import (
	"os"
	"sync/atomic"
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Files is a tree of files that never changes and has its names and attributes in memory: that of a container image.
// Its inodes have the numbers from 0, the root, on. All methods may be called by many threads at once.
type Files interface {
	Len() int                                           // number of inodes
	Stat(n uint32, st *unix.Stat_t)                     // all but st_dev, st_ino and what follows from the size
	Lookup(dir uint32, name string) (n uint32, ok bool) // nothing if dir is no directory
	Child(dir uint32, i int) (name string, n uint32, ok bool)
	Parent(dir uint32) uint32 // of the root it is the root
	Readlink(n uint32) string
	Xattr(n uint32, name string) (value string, ok bool)
	Xattrs(n uint32) []string
	// Permits reports whether whom it is served for may open or list an inode (R_OK), find names in it (X_OK), look at it (0).
	Permits(n uint32, want uint32) bool
	Open(n uint32) (*os.File, error) // the content of a regular file, for reading; owned by the caller of Open
	Statfs(st *unix.Statfs_t) error  // of where what Open returns is
	Bytes() uint64                   // of all regular files
}

// imageTree serves Files. What is known of an inode holds for ever, so the kernel is told so, and need not be asked back.
// A made-up entry has a number, too, after those of the tree.
type imageTree struct {
	raw.RawFileSystem // ENOSYS for what is not below

	files       Files
	allow       func(tid uint32) bool
	unasked     bool // see Options.unasked
	ids         idMap
	threads     *threads
	backing     backing
	contents    contents
	handles     handles
	started     time.Time
	usesItself  atomic.Bool
	wantBacking bool
	depth       int

	below map[uint32]*extra // made-up entries below directories of the tree
	made  []*extra          // made-up entries by number
	gen   uint64
}

func newImageTree(o Options, ids idMap, top *extra, threads *threads) *imageTree {
	fs := &imageTree{
		RawFileSystem: raw.NewDefaultRawFileSystem(), files: o.Files, allow: o.Allow, unasked: o.unasked(), ids: ids, threads: threads,
		started: time.Now(), wantBacking: o.Passthrough, depth: 1, below: map[uint32]*extra{}, gen: generation(),
	}
	fs.handles.init()
	paths, files := o.descriptors()
	fs.contents.init(paths + files)
	var st unix.Statfs_t
	if o.Files.Statfs(&st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		fs.depth = 2
	}
	if top != nil {
		fs.graft(0, top)
	}
	return fs
}

// graft puts made-up entries over a directory of the tree.
func (fs *imageTree) graft(dir uint32, x *extra) {
	fs.below[dir] = x
	for _, c := range x.children {
		if n, ok := fs.files.Lookup(dir, c.name); ok && c.entry == nil && fs.kind(n) == unix.S_IFDIR {
			fs.graft(n, c)
			continue
		}
		fs.makeUp(c)
	}
}

func (fs *imageTree) makeUp(x *extra) {
	x.sticky = true
	x.made = &inode{made: true, node: uint64(fs.files.Len()+len(fs.made)) + 1}
	x.ino = x.made.node
	fs.made = append(fs.made, x)
	for _, c := range x.children {
		fs.makeUp(c)
	}
}

func (fs *imageTree) kind(n uint32) uint32 {
	var st unix.Stat_t
	fs.files.Stat(n, &st)
	return st.Mode & unix.S_IFMT
}

// find returns what a node id stands for: a made-up entry, or an inode of the tree.
func (fs *imageTree) find(node uint64) (n uint32, x *extra, ok bool) {
	i := node - 1 // node id 0 is none
	size := uint64(fs.files.Len())
	switch {
	case i < size:
		return uint32(i), nil, true
	case i-size < uint64(len(fs.made)):
		return 0, fs.made[i-size], true
	}
	return 0, nil, false
}

func (fs *imageTree) serves() error        { return fs.threads.enter() }
func (fs *imageTree) locking() bool        { return false }
func (fs *imageTree) passthrough() bool    { return fs.wantBacking }
func (fs *imageTree) stackDepth() int      { return fs.depth }
func (fs *imageTree) connect(c *transport) { fs.backing.connect(c.fd) }
func (fs *imageTree) tick()                { fs.end(fs.contents.age()) }
func (fs *imageTree) hangUp()              {}
func (fs *imageTree) pollHack() bool       { return fs.usesItself.Load() }
func (fs *imageTree) String() string       { return "cntr" }

func (fs *imageTree) close() {
	fs.handles.closeAll()
	fs.end(fs.contents.all())
	unix.Close(fs.threads.procFD)
}

// allowed asks Options.Allow, and Files unless it is a made-up entry.
func (fs *imageTree) allowed(h *raw.InHeader, n uint32, x *extra, want uint32) bool {
	return (fs.allow == nil || fs.allow(h.Pid)) && (x != nil || fs.files.Permits(n, want))
}

// Lookup finds a name in a directory. "." and ".." come from open_by_handle_at(2) in the session (FUSE_EXPORT_SUPPORT).
func (fs *imageTree) Lookup(_ <-chan struct{}, h *raw.InHeader, name string, out *raw.EntryOut) raw.Status {
	dir, x, ok := fs.find(h.NodeId)
	if !ok {
		return raw.Status(unix.ESTALE)
	}
	switch {
	case name == ".":
		fs.answer(h.NodeId, out)
	case name == "..":
		switch {
		case x == nil:
			fs.answer(uint64(fs.files.Parent(dir))+1, out)
		default:
			return raw.Status(unix.ESTALE)
		}
	default:
		node, ok := fs.child(dir, x, name)
		if x == nil && node <= uint64(fs.files.Len()) && !fs.files.Permits(dir, unix.X_OK) {
			return raw.EACCES
		}
		if !ok {
			*out = raw.EntryOut{} // node id 0 is an ENOENT that may be remembered
			out.SetEntryTimeout(Forever)
			return raw.OK
		}
		fs.answer(node, out)
	}
	return raw.OK
}

// child finds a name in a directory of the tree, or below a made-up entry.
func (fs *imageTree) child(dir uint32, x *extra, name string) (node uint64, ok bool) {
	over := x
	if x == nil {
		over = fs.below[dir]
	}
	if over != nil {
		if c := over.children[name]; c != nil && c.made != nil {
			return c.made.node, true
		}
	}
	if x != nil {
		return 0, false
	}
	n, ok := fs.files.Lookup(dir, name)
	return uint64(n) + 1, ok
}

func (fs *imageTree) answer(node uint64, out *raw.EntryOut) {
	*out = raw.EntryOut{NodeId: node, Generation: fs.gen}
	out.SetEntryTimeout(Forever)
	out.SetAttrTimeout(Forever)
	fs.fill(node, &out.Attr)
}

func (fs *imageTree) fill(node uint64, a *raw.Attr) {
	n, x, _ := fs.find(node)
	if x != nil {
		fs.ids.fillMade(x, fs.started, a)
		return
	}
	var st unix.Stat_t
	fs.files.Stat(n, &st)
	*a = raw.Attr{
		Ino: node, Size: uint64(st.Size), Blocks: uint64(st.Size+511) / 512, Mode: st.Mode, Nlink: uint32(st.Nlink),
		Rdev: uint32(st.Rdev), Blksize: 4096,
		Atime: uint64(st.Atim.Sec), Mtime: uint64(st.Mtim.Sec), Ctime: uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec), Mtimensec: uint32(st.Mtim.Nsec), Ctimensec: uint32(st.Ctim.Nsec),
	}
	a.Uid, a.Gid = show(fs.ids.uid, st.Uid), show(fs.ids.gid, st.Gid)
}

// Forget has nothing to do: the tree is in memory as a whole.
func (fs *imageTree) Forget(uint64, uint64) {}

// GetAttr is stat(2).
func (fs *imageTree) GetAttr(_ <-chan struct{}, in *raw.GetAttrIn, out *raw.AttrOut) raw.Status {
	if _, _, ok := fs.find(in.NodeId); !ok {
		return raw.Status(unix.ESTALE)
	}
	out.SetTimeout(Forever)
	fs.fill(in.NodeId, &out.Attr)
	return raw.OK
}

// StatFs is statfs(2): an image is as large as its files, and full.
func (fs *imageTree) StatFs(_ <-chan struct{}, _ *raw.InHeader, out *raw.StatfsOut) raw.Status {
	*out = raw.StatfsOut{
		Blocks: (fs.files.Bytes() + 4095) / 4096, Files: uint64(fs.files.Len()), Bsize: 4096, Frsize: 4096, NameLen: unix.NAME_MAX,
	}
	return raw.OK
}

// Readlink returns the target of a symbolic link.
func (fs *imageTree) Readlink(_ <-chan struct{}, h *raw.InHeader) ([]byte, raw.Status) {
	n, x, ok := fs.find(h.NodeId)
	switch {
	case !ok:
		return nil, raw.Status(unix.ESTALE)
	case !fs.allowed(h, n, x, 0):
		return nil, raw.EACCES
	case x != nil && x.mode()&unix.S_IFMT == unix.S_IFLNK:
		return []byte(x.entry.Target), raw.OK
	case x != nil || fs.kind(n) != unix.S_IFLNK:
		return nil, raw.EINVAL
	}
	return []byte(fs.files.Readlink(n)), raw.OK
}

// GetXAttr is getxattr(2). An ACL that is not there is ENODATA: with any other error the kernel refuses to open files.
func (fs *imageTree) GetXAttr(_ <-chan struct{}, h *raw.InHeader, attr string, dest []byte) (uint32, raw.Status) {
	n, x, ok := fs.find(h.NodeId)
	if !ok {
		return 0, raw.Status(unix.ESTALE)
	}
	if x != nil {
		return 0, raw.ENODATA
	}
	value, ok := fs.files.Xattr(n, attr)
	switch {
	case !ok:
		return 0, raw.ENODATA
	case !fs.allowed(h, n, x, 0):
		return 0, raw.EACCES
	case len(dest) == 0:
		return uint32(len(value)), raw.OK
	case len(value) > len(dest):
		return uint32(len(value)), raw.ERANGE
	}
	copy(dest, value)
	fs.ids.showXattr(attr, dest[:len(value)])
	return uint32(len(value)), raw.OK
}

// ListXAttr is listxattr(2).
func (fs *imageTree) ListXAttr(_ <-chan struct{}, h *raw.InHeader, dest []byte) (uint32, raw.Status) {
	n, x, ok := fs.find(h.NodeId)
	switch {
	case !ok:
		return 0, raw.Status(unix.ESTALE)
	case x != nil:
		return 0, raw.OK
	case !fs.allowed(h, n, x, 0):
		return 0, raw.EACCES
	}
	var names []byte
	for _, name := range fs.files.Xattrs(n) {
		names = append(append(names, name...), 0)
	}
	return fs.ids.listXattrs(h.Uid, names, dest)
}
