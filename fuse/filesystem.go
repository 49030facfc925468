package fuse

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say what is served and how.
type Options struct {
	// Root is the root of the tree: a directory, opened O_PATH or for reading. New makes a duplicate of it.
	Root *os.File

	// Files is served in place of Root if it is set. Nobody ever changes it, so Writable and Cache mean nothing; it knows itself
	// whom it is for, so that of Caller only what IDs says counts.
	Files Files

	// Writable lets the session change the tree. Otherwise every change fails with EROFS.
	Writable bool

	// IDs maps owners between tree and session. The zero value is the identity.
	IDs IDMap

	// Extra holds entries that are made up in memory, by path from the root, slash-separated and without a leading
	// slash ("var/lib/cntr"). An entry takes the place of whatever the tree has there, be it a symbolic link or a
	// directory that is not empty; the session finds it by this path only. Parents that the tree lacks, or that are no
	// directories there, are made up as directories with mode 0755; those it has keep their other children. Owner is
	// the tree's root. They cannot be changed, renamed or removed (EROFS, EBUSY).
	Extra map[string]Entry

	// Allow says whether a process, given by its thread id in the pid namespace that the mount was made in (0: not
	// visible there), may use the tree. It is asked before anything is opened, read, listed or changed by way of a new
	// open; what it refuses fails with EACCES. Nil allows all. It may be called by many threads at once.
	Allow func(tid uint32) bool

	// Guarded says that nobody whom Allow refuses can get at the mount, so that what the kernel has in memory may be given out
	// without asking Allow: names of directories, and what is read of an image (Files) that cannot be had in passthrough mode.
	Guarded bool

	// Caller is the person for whom the tree is served, if that is not root: the server then works on the tree with
	// these ids and no capabilities, whatever ids the session's processes have. Nil: as root, with new files
	// owned by whoever made them.
	Caller *Credential

	// Cache says how long the kernel may believe what it was told.
	Cache Cache

	// Watch has changes of the tree told by the kernel (fanotify(7); needs Linux 6.2), and what can be seen that way believed
	// for so long, if that is longer than Cache says. 0: not at all.
	Watch time.Duration

	// Passthrough lets the kernel read, write and map the tree's files itself where it can (Linux 6.9). It falls
	// back to the server file by file.
	Passthrough bool

	// Descriptors bounds how many descriptors are kept only to be quick. The default is a quarter of RLIMIT_NOFILE,
	// at most 16,384. Open files, and files that were unlinked while they are in use, come on top.
	Descriptors int
}

// Cache says how long the kernel may use what it was told before it asks again. Zero means DefaultTimeout, negative means
// not at all.
type Cache struct {
	Entry    time.Duration // a name leads to this inode
	Attr     time.Duration // the attributes are these
	Negative time.Duration // there is no such name
}

const (
	// DefaultTimeout is for the trees of live hosts.
	DefaultTimeout = time.Second
	// WatchTimeout is for Options.Watch. It bounds what a lost event can do.
	WatchTimeout = time.Minute
	// Forever is for trees that nobody changes.
	Forever = 100 * 365 * 24 * time.Hour
)

// Entry is a file that is made up in memory.
type Entry struct {
	Mode    uint32 // type and permissions: S_IFDIR|0755, S_IFREG|0644, S_IFLNK|0777
	Content []byte // of a regular file
	Target  string // of a symbolic link
}

// Transport is the way that requests take.
type Transport string

const (
	Device Transport = "/dev/fuse"
	// URing is quicker, where the kernel offers it: Linux 6.14, with the parameter enable_uring of the module fuse, and io_uring
	// not forbidden. Otherwise requests come by the device all the same.
	URing Transport = "io_uring"
)

// FileSystem serves one tree on one mount.
type FileSystem struct {
	tree *tree   // nil with Options.Files
	ops  backend // what is served

	mu      sync.Mutex
	conn    *transport
	closed  bool
	serving chan struct{} // closed by begun
	begun   func()        // the first Serve has set conn, or failed to
	once    sync.Once     // releases the tree
}

// tree is the inodes and operations. It implements go-fuse's RawFileSystem.
type tree struct {
	raw.RawFileSystem // ENOSYS for what is not below

	opts     Options
	ids      idMap
	cache    Cache
	inodes   *table
	mounts   *mounts
	descs    *descs
	threads  *threads
	handles  handles
	opens    opens
	listings listings
	extras   extras
	backing  backing
	locks    locks
	conn     *transport // set by connect
	watcher  *watcher
	started  time.Time

	rootType int64 // of the root's file system, as statfs(2) names it
	// usesItself lets go-fuse's poll hack work, for tests that use the mount in the server's own process.
	usesItself atomic.Bool
	gen        uint64 // generation of all our inodes: one number for each life of a file system
}

// New prepares to serve a tree. Close releases it, also when Serve was never called.
func New(o Options) (*FileSystem, error) {
	ids, err := newIDMap(o.IDs, o.Caller != nil)
	if err != nil {
		return nil, err
	}
	top, err := newExtras(o.Extra)
	if err != nil {
		return nil, err
	}
	if o.Files != nil {
		threads, err := newThreads(nil) // contents are opened with the server's rights
		if err != nil {
			return nil, err
		}
		return newFileSystem(nil, newImageTree(o, ids, top, threads)), nil
	}
	if o.Root == nil {
		return nil, errors.New("no root given")
	}
	threads, err := newThreads(o.Caller)
	if err != nil {
		return nil, err
	}
	t := &tree{
		RawFileSystem: raw.NewDefaultRawFileSystem(),
		opts:          o,
		ids:           ids,
		cache:         o.Cache.withDefaults(),
		inodes:        newTable(),
		mounts:        newMounts(threads),
		threads:       threads,
		watcher:       newWatcher(o.Watch > 0),
		started:       time.Now(),
		gen:           generation(),
	}
	t.opts.Root = nil
	paths, files := o.descriptors()
	t.descs = newDescs(paths, t.reopenInode)
	t.handles.init()
	t.opens.init(files)
	t.locks.init()
	t.listings.unopened = o.unasked()
	if err := threads.run(func() error { return t.addRoot(o.Root, top) }); err != nil {
		unix.Close(threads.procFD)
		t.watcher.close()
		return nil, fmt.Errorf("root %s: %w", o.Root.Name(), err)
	}
	return newFileSystem(t, t), nil
}

func newFileSystem(t *tree, ops backend) *FileSystem {
	serving := make(chan struct{})
	return &FileSystem{tree: t, ops: ops, serving: serving, begun: sync.OnceFunc(func() { close(serving) })}
}

func (c Cache) withDefaults() Cache {
	for _, d := range []*time.Duration{&c.Entry, &c.Attr, &c.Negative} {
		switch {
		case *d == 0:
			*d = DefaultTimeout
		case *d < 0:
			*d = 0
		}
	}
	return c
}

// unasked says whether what the kernel has in memory may be given out without asking. For a Caller, the tree's own kernel, or Files, checks
// each open.
func (o *Options) unasked() bool { return (o.Guarded || o.Allow == nil) && o.Caller == nil }

// descriptors returns how many descriptors are kept: O_PATH ones, and of files that were open a moment ago, most, as these take more to
// get.
func (o *Options) descriptors() (paths, files int) {
	all := o.Descriptors
	if all <= 0 {
		all = 256
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
			all = int(max(16, min(lim.Cur/4, 16384)))
		}
	}
	paths = (all + 3) / 4
	return paths, all - paths
}

// generation is a number that another file system on the same node ids will hardly have. 32 bits of it end up
// in file handles that the session takes.
func generation() uint64 {
	var b [4]byte
	if _, err := unix.Getrandom(b[:], 0); err != nil {
		return uint64(time.Now().UnixNano() & 0xffffffff)
	}
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24
}

// addRoot puts the root of the tree into the table.
func (fs *tree) addRoot(root *os.File, top *extra) error {
	// An O_PATH copy of the descriptor: what the caller opened it for is not needed.
	fd, err := unix.Openat(fs.threads.procFD, fdName(int(root.Fd())), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var buf handleBuffer
	mnt, handle, stx, err := fs.identify(fd, &buf)
	if err != nil {
		unix.Close(fd)
		return err
	}
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil {
		fs.rootType = st.Type
	}
	n := &inode{key: key{inoKey{mnt, stx.Ino}, string(handle)}, kind: unix.S_IFDIR}
	n.extra.Store(top)
	fs.inodes.addRoot(n)
	n.pinned = true
	fs.descs.offer(n, fd)
	return nil
}

// Serve answers requests on dev, an open /dev/fuse whose superblock has been made or is about to be, until the file
// system is unmounted or closed; it returns nil then. It takes over dev. Requests come over the transport that is
// asked for, if there is such, see [FileSystem.Transport].
func (f *FileSystem) Serve(dev *os.File, over Transport) error {
	f.mu.Lock()
	if f.closed || f.conn != nil {
		f.mu.Unlock()
		dev.Close()
		if f.closed {
			return nil
		}
		return errors.New("file system is being served already")
	}
	conn, err := newTransport(f.ops, dev, over == URing)
	f.conn = conn
	f.mu.Unlock()
	f.begun()
	if err != nil {
		return err
	}

	err = conn.serve()
	f.release()
	return err
}

// Close ends service. Requests in the mount fail with ENOTCONN from then on, those under way with ECONNABORTED; reads
// and writes of files that are open in passthrough mode go on, as do those of pages in memory. All descriptors are
// released when Close returns, except for those of operations that are still under way.
func (f *FileSystem) Close() error {
	f.mu.Lock()
	f.closed = true
	conn := f.conn
	f.mu.Unlock()
	if conn != nil {
		conn.stop()
	}
	f.release()
	return nil
}

// release closes what the tree holds.
func (f *FileSystem) release() {
	f.once.Do(func() {
		f.mu.Lock()
		f.closed = true
		f.mu.Unlock()
		f.ops.close()
	})
}

func (fs *tree) close() {
	fs.handles.closeAll()
	fs.listings.age(true)
	_ = fs.threads.run(func() error { fs.closeOpens(); return nil })
	fs.locks.closeAll()
	fs.watcher.close()
	fs.inodes.each(func(n *inode) {
		fs.descs.drop(n)
		if n.mnt != nil {
			fs.mounts.put(n.mnt)
		}
	})
	unix.Close(fs.threads.procFD)
}

// Requests returns how many requests of each kind the kernel has sent.
func (f *FileSystem) Requests() map[string]uint64 {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn == nil {
		return nil
	}
	return conn.requests()
}

// Transport says which way requests come. It is "" before Serve.
func (f *FileSystem) Transport() Transport {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	switch {
	case conn == nil:
		return ""
	case conn.overRings():
		return URing
	}
	return Device
}

func (fs *tree) serves() error     { return fs.threads.enter() }
func (fs *tree) locking() bool     { return true }
func (fs *tree) passthrough() bool { return fs.opts.Passthrough }
func (fs *tree) hangUp()           { fs.locks.stop() }
func (fs *tree) pollHack() bool    { return fs.usesItself.Load() }

func (fs *tree) connect(c *transport) {
	fs.backing.connect(c.fd)
	fs.locks.releases = c.releases
	fs.conn = c
	if fs.watcher.group >= 0 {
		fs.watcher.sender.Store(c)
		c.also(fs.watch, fs.watcher.end)
	}
}

func (fs *tree) tick() {
	fs.descs.age()
	fs.ageOpens()
	fs.listings.age(false)
	fs.dropLists()
	fs.inodes.giveBack()
}

func (fs *tree) String() string { return "cntr" }

// allowed asks Options.Allow.
func (fs *tree) allowed(h *raw.InHeader) bool {
	return fs.opts.Allow == nil || fs.opts.Allow(h.Pid)
}

// mayChange checks what any change needs.
func (fs *tree) mayChange(h *raw.InHeader) raw.Status {
	if !fs.opts.Writable {
		return raw.EROFS
	}
	if !fs.allowed(h) {
		return raw.EACCES
	}
	return raw.OK
}
