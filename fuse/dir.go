package fuse

import (
	"sync"
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream is an open directory that is being read. Positions are those of the tree's own file system, so seekdir(3)
// works as there, for directories of any size, with nothing remembered; made-up entries come last, at positions
// that no file system uses.
type dirStream struct {
	mu   sync.Mutex
	buf  []byte // what getdents64(2) returned
	rest []byte // the part of it that was not passed on yet
	next uint64 // position of the first entry in rest
	seek uint64 // position of the tree's descriptor
}

// Positions of made-up entries and of the end. ext4 has the highest positions, 63-bit hashes, but for its end of
// directory none from 0x7fffffff00000000 on (ext4_dir's hash2pos never sees a major hash of 0x7fffffff).
const (
	extraPos = 0x7fffffff00000001
	dirBuf   = 32 << 10

	minDirCache = 10 * time.Second
)

// OpenDir is open(2) of a directory.
func (fs *tree) OpenDir(_ <-chan struct{}, in *raw.OpenIn, out *raw.OpenOut) raw.Status {
	if fs.listings.unopened {
		return raw.ENOSYS // and the kernel never asks again
	}
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if !fs.allowed(&in.InHeader) {
		return raw.EACCES
	}
	h, err := fs.openDir(n, in.Flags&unix.O_NOATIME)
	if err != nil {
		return status(err)
	}
	fs.handles.add(h)
	out.Fh = h.fh
	out.OpenFlags = fs.dirCacheFlags(h)
	return raw.OK
}

// openDir opens a directory to be listed. The handle is not in the table.
func (fs *tree) openDir(n *inode, flags uint32) (*handle, error) {
	h := &handle{n: n, fd: -1, dir: &dirStream{}}
	if n.made || n.mnt.flags&opaque != 0 {
		return h, nil
	}
	l, err := fs.lend(n, 0, false)
	if err != nil {
		return nil, err
	}
	defer l.release()
	h.fd, err = fs.reopen(l.fd, unix.O_RDONLY|unix.O_DIRECTORY|flags)
	return h, err
}

// dirCacheFlags says whether the kernel may keep the list of names. It drops the list when the directory's time of
// change moves, but a kept list does not renew what is known of each entry, while READDIRPLUS does. So keeping
// pays only if entries are believed for long.
func (fs *tree) dirCacheFlags(h *handle) uint32 {
	const keep = raw.FOPEN_CACHE_DIR | raw.FOPEN_KEEP_CACHE
	if fs.lastLong() {
		return keep
	}
	if h.fd >= 0 && fs.believe(h.n, h.fd) != 0 {
		if at := h.n.watch.Load().listed.Load(); at == 0 || fs.recently(at) {
			return keep
		}
	}
	return 0
}

// lastLong says whether names and attributes are believed for long in any case.
func (fs *tree) lastLong() bool {
	return fs.cache.Entry >= minDirCache && fs.cache.Attr >= minDirCache
}

// ReleaseDir closes a directory.
func (fs *tree) ReleaseDir(in *raw.ReleaseIn) { fs.Release(nil, in) }

// ReadDir lists names.
func (fs *tree) ReadDir(_ <-chan struct{}, in *raw.ReadIn, out *raw.DirEntryList) raw.Status {
	return fs.readDir(in, func(_ *handle, e raw.DirEntry, _ belief) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names and looks each of them up.
func (fs *tree) ReadDirPlus(_ <-chan struct{}, in *raw.ReadIn, out *raw.DirEntryList) raw.Status {
	return fs.readDir(in, func(h *handle, e raw.DirEntry, b belief) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true // the kernel wants no lookups of these
		}
		if err := fs.lookupChild(h.n, h.fd, e.Name, b, entry); err != nil {
			// Gone since, or not for us: node id 0 lets the kernel ask when it needs to know.
			*entry = raw.EntryOut{}
			return true
		}
		out.FixMode(entry.Mode)
		return true
	})
}

// readDir passes on entries from the position in the request until add has no room left.
func (fs *tree) readDir(in *raw.ReadIn, add func(*handle, raw.DirEntry, belief) bool) raw.Status {
	if in.Fh == 0 {
		return fs.readUnopened(in, add)
	}
	h := fs.handles.get(in.Fh)
	if h == nil || h.dir == nil {
		return raw.EBADF
	}
	h.dir.mu.Lock()
	defer h.dir.mu.Unlock()
	b := fs.believeList(h, in.Offset)
	_, err := fs.list(h, in.Offset, func(h *handle, e raw.DirEntry) bool { return add(h, e, b) })
	return status(err)
}

// believeList is believe for the entries of a directory that is listed from a position on.
func (fs *tree) believeList(h *handle, pos uint64) belief {
	if h.fd < 0 {
		return 0
	}
	b := fs.believe(h.n, h.fd)
	if b != 0 && pos == 0 {
		h.n.watch.Load().listed.Store(time.Now().UnixNano())
	}
	return b
}

// list passes on entries from a position until add has no room left, or to the end. The lock of the stream is held.
func (fs *tree) list(h *handle, pos uint64, add func(*handle, raw.DirEntry) bool) (full bool, err error) {
	if pos < extraPos {
		if full, err = fs.readReal(h, pos, add); full || err != nil {
			return full, err
		}
		pos = extraPos
	}
	return fs.readExtra(h, pos-extraPos, add), nil
}

// readReal passes on the tree's entries. full: there was no room for one.
func (fs *tree) readReal(h *handle, pos uint64, add func(*handle, raw.DirEntry) bool) (full bool, err error) {
	if h.fd < 0 {
		return fs.readDots(h, pos, add), nil
	}
	d := h.dir
	if pos == 0 || pos != d.next || len(d.rest) == 0 {
		d.rest = nil
		if d.seek != pos || pos == 0 {
			if _, err := unix.Seek(h.fd, int64(pos), unix.SEEK_SET); err != nil {
				return false, err
			}
			d.seek = pos
		}
		d.next = pos
	}
	x := h.n.extra.Load()
	sent := false
	for {
		if len(d.rest) == 0 {
			if d.buf == nil {
				d.buf = make([]byte, dirBuf)
			}
			var n int
			err := retry(func() (err error) {
				n, err = unix.Getdents(h.fd, d.buf)
				return err
			})
			if err != nil && !sent {
				return false, err
			}
			if err != nil {
				return true, nil
			}
			if n <= 0 {
				return false, nil
			}
			d.rest = d.buf[:n]
		}
		var e raw.DirEntry
		size := e.Parse(d.rest)
		if !fs.hides(x, &e) {
			if e.Name == ".." && h.n.node == rootNode {
				e.Ino = 0 // what is above the root is nobody's business
			}
			if e.Ino != 0 {
				e.Ino = h.n.mnt.inoFor(e.Ino)
			}
			if !add(h, e) {
				return true, nil
			}
			sent = true
		}
		d.rest = d.rest[size:]
		d.next, d.seek = e.Off, e.Off
	}
}

// hides says whether a name of the tree is replaced by a made-up entry.
func (fs *tree) hides(x *extra, e *raw.DirEntry) bool {
	if x == nil {
		return false
	}
	c := x.children[e.Name]
	// What is no directory gives way to one, see lookupChild; readExtra lists that.
	return c != nil && (fs.isMade(c) || e.Mode != 0 && e.Mode != unix.S_IFDIR)
}

// readDots lists what a directory without a counterpart in the tree begins with.
func (fs *tree) readDots(h *handle, pos uint64, add func(*handle, raw.DirEntry) bool) (full bool) {
	for i := pos; i < 2; i++ {
		if !add(h, raw.DirEntry{Name: []string{".", ".."}[i], Mode: unix.S_IFDIR, Off: i + 1}) {
			return true
		}
	}
	return false
}

// readExtra lists made-up entries from number i on.
func (fs *tree) readExtra(h *handle, i uint64, add func(*handle, raw.DirEntry) bool) (full bool) {
	x := h.n.extra.Load()
	if x == nil {
		return false
	}
	for ; i < uint64(len(x.order)); i++ {
		c := x.children[x.order[i]]
		if !h.n.made && !fs.isMade(c) {
			if !fs.missing(h, c) {
				continue // listed with the tree's own
			}
			fs.stick(c)
		}
		if !add(h, raw.DirEntry{Name: c.name, Mode: c.mode() & unix.S_IFMT, Ino: c.ino, Off: extraPos + i + 1}) {
			return true
		}
	}
	return false
}

// missing says whether the tree has no directory for one that made-up entries are below.
func (fs *tree) missing(h *handle, c *extra) bool {
	if h.fd < 0 {
		return true
	}
	var st unix.Stat_t
	err := unix.Fstatat(h.fd, c.name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	return err == unix.ENOENT || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR
}
