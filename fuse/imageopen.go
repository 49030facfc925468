package fuse

import (
	"log"
	"sync"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// contents are the files of an imageTree that are open, or were a short while ago.
type contents struct {
	mu    sync.Mutex
	open  map[uint32]*content
	limit int
	now   uint32
}

// content is one file's content, shared by all who have it open.
type content struct {
	n    uint32
	once sync.Once // fills in what follows
	fd   int
	err  error
	id   int32 // with pass: the kernel's number for it
	pass bool

	refs int    // guarded by contents.mu
	used uint32 // likewise
}

func (c *contents) init(limit int) { c.open, c.limit = make(map[uint32]*content), limit }

func (c *contents) get(n uint32) *content {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.open[n]
	if s == nil {
		s = &content{n: n, fd: -1}
		c.open[n] = s
	}
	s.refs++
	return s
}

// put gives a content back. It returns one to be ended: this one, if it could not be opened or too many are kept.
func (c *contents) put(s *content) []*content {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.used = c.now
	if s.refs--; s.refs > 0 || s.err == nil && len(c.open) <= c.limit {
		return nil
	}
	delete(c.open, s.n)
	return []*content{s}
}

// age returns those that were not used lately, once a second.
func (c *contents) age() (old []*content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now++
	for n, s := range c.open {
		if s.refs == 0 && c.now-s.used > idle {
			delete(c.open, n)
			old = append(old, s)
		}
	}
	return old
}

func (c *contents) all() (list []*content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, s := range c.open {
		delete(c.open, n)
		list = append(list, s)
	}
	return list
}

// end lets go of contents that nobody has open any more.
func (fs *imageTree) end(list []*content) {
	for _, s := range list {
		if s.pass {
			fs.backing.close(fs.threads, s.id)
		}
		if s.fd >= 0 {
			unix.Close(s.fd)
		}
	}
}

// load opens a content and registers it with the kernel.
func (fs *imageTree) load(s *content) {
	f, err := fs.files.Open(s.n)
	if err != nil {
		// The session gets EIO; why, only who reads the journal.
		log.Printf("reading the image: %v", err)
		s.err = unix.EIO
		return
	}
	defer f.Close()
	if s.fd, s.err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); s.err != nil || !fs.wantBacking || fs.backing.off.Load() {
		return
	}
	err = fs.threads.with(capSysAdmin, 0, func() (err error) {
		s.id, err = fs.backing.open(s.fd)
		return err
	})
	s.pass = err == nil
}

// Open is open(2) of a file. The kernel has checked permissions.
func (fs *imageTree) Open(_ <-chan struct{}, in *raw.OpenIn, out *raw.OpenOut) raw.Status {
	n, x, ok := fs.find(in.NodeId)
	switch {
	case !ok:
		return raw.Status(unix.ESTALE)
	case !fs.allowed(&in.InHeader, n, x, unix.R_OK):
		return raw.EACCES
	case in.Flags&unix.O_ACCMODE != unix.O_RDONLY || in.Flags&unix.O_TRUNC != 0:
		return raw.EROFS
	case x != nil && x.mode()&unix.S_IFMT == unix.S_IFREG:
		out.OpenFlags = raw.FOPEN_KEEP_CACHE | raw.FOPEN_NOFLUSH
		return raw.OK
	case x != nil || fs.kind(n) != unix.S_IFREG:
		return raw.EACCES
	}
	s := fs.contents.get(n)
	s.once.Do(func() { fs.load(s) })
	if s.err != nil || fs.unopened() {
		st := raw.ENOSYS // and the kernel never asks again
		if s.err != nil {
			st = status(s.err)
		}
		fs.end(fs.contents.put(s))
		return st
	}
	h := &handle{fd: s.fd, shared: true, lock: -1, content: s}
	fs.handles.add(h)
	out.Fh = h.fh
	out.OpenFlags = raw.FOPEN_KEEP_CACHE | raw.FOPEN_NOFLUSH
	if s.pass {
		out.OpenFlags = raw.FOPEN_PASSTHROUGH | raw.FOPEN_NOFLUSH
		out.BackingID = s.id
	}
	return raw.OK
}

// unopened says whether files need not be opened: there is no passthrough, which would take an OPEN for each, and would be worth it. Then
// the kernel reads files by number (FUSE_NO_OPEN_SUPPORT, Linux 3.15), keeps what it has read, and to open, read and close what is in memory
// asks us nothing.
func (fs *imageTree) unopened() bool {
	return fs.unasked && (!fs.wantBacking || fs.backing.off.Load())
}

// borrow returns the descriptor of an open file, or of one that was not opened, to be given back with done.
func (fs *imageTree) borrow(in *raw.InHeader, fh uint64) (fd int, done func(), st raw.Status) {
	if h := fs.handles.get(fh); h != nil {
		return h.fd, func() {}, raw.OK
	}
	n, x, ok := fs.find(in.NodeId)
	switch {
	case !ok || x != nil || fh != 0 || !fs.unopened() || fs.kind(n) != unix.S_IFREG:
		return -1, nil, raw.EBADF
	case !fs.allowed(in, n, nil, unix.R_OK):
		return -1, nil, raw.EACCES
	}
	s := fs.contents.get(n)
	s.once.Do(func() { fs.load(s) })
	done = func() { fs.end(fs.contents.put(s)) }
	if s.err != nil {
		defer done()
		return -1, nil, status(s.err)
	}
	return s.fd, done, raw.OK
}

// Read reads what is not in passthrough mode.
func (fs *imageTree) Read(_ <-chan struct{}, in *raw.ReadIn, buf []byte) (raw.ReadResult, raw.Status) {
	if _, x, _ := fs.find(in.NodeId); x != nil {
		return x.read(in), raw.OK
	}
	fd, done, st := fs.borrow(&in.InHeader, in.Fh)
	if !st.Ok() {
		return nil, st
	}
	defer done()
	return readFrom(fd, in, buf, true)
}

// Release closes a file.
func (fs *imageTree) Release(_ <-chan struct{}, in *raw.ReleaseIn) {
	if h := fs.handles.remove(in.Fh); h != nil {
		fs.end(fs.contents.put(h.content))
	}
}

// Lseek finds data and holes (SEEK_DATA, SEEK_HOLE); other seeks do not reach the server.
func (fs *imageTree) Lseek(_ <-chan struct{}, in *raw.LseekIn, out *raw.LseekOut) raw.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return raw.EINVAL
	}
	fd, done, st := fs.borrow(&in.InHeader, in.Fh)
	if !st.Ok() {
		return st
	}
	defer done()
	off, err := unix.Seek(fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}
