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
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if !fs.allowed(&in.InHeader) {
		return raw.EACCES
	}
	h := &handle{n: n, fd: -1, dir: &dirStream{}}
	if !n.made && n.mnt.flags&opaque == 0 {
		l, err := fs.lend(n, 0, false)
		if err != nil {
			return status(err)
		}
		defer l.release()
		if h.fd, err = fs.reopen(l.fd, unix.O_RDONLY|unix.O_DIRECTORY|in.Flags&unix.O_NOATIME); err != nil {
			return status(err)
		}
	}
	fs.handles.add(h)
	out.Fh = h.fh
	out.OpenFlags = fs.dirCacheFlags(h)
	return raw.OK
}

// dirCacheFlags says whether the kernel may keep the list of names. It drops the list when the directory's time of
// change moves, but a kept list does not renew what is known of each entry, while READDIRPLUS does. So keeping
// pays only if entries are believed for long.
func (fs *tree) dirCacheFlags(h *handle) uint32 {
	const keep = raw.FOPEN_CACHE_DIR | raw.FOPEN_KEEP_CACHE
	if fs.cache.Entry >= minDirCache && fs.cache.Attr >= minDirCache {
		return keep
	}
	if h.fd >= 0 && fs.believe(h.n, h.fd) != 0 {
		if at := h.n.watch.Load().listed.Load(); at == 0 || fs.recently(at) {
			return keep
		}
	}
	return 0
}

// ReleaseDir closes a directory.
func (fs *tree) ReleaseDir(in *raw.ReleaseIn) { fs.Release(nil, in) }

// ReadDir lists names.
func (fs *tree) ReadDir(_ <-chan struct{}, in *raw.ReadIn, out *raw.DirEntryList) raw.Status {
	return fs.readDir(in, func(h *handle, e raw.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names and looks each of them up.
func (fs *tree) ReadDirPlus(_ <-chan struct{}, in *raw.ReadIn, out *raw.DirEntryList) raw.Status {
	var b belief
	if h := fs.handles.get(in.Fh); h != nil && h.fd >= 0 {
		if b = fs.believe(h.n, h.fd); b != 0 && in.Offset == 0 {
			h.n.watch.Load().listed.Store(time.Now().UnixNano())
		}
	}
	return fs.readDir(in, func(h *handle, e raw.DirEntry) bool {
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
func (fs *tree) readDir(in *raw.ReadIn, add func(*handle, raw.DirEntry) bool) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil || h.dir == nil {
		return raw.EBADF
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()

	if in.Offset < extraPos {
		full, err := fs.readReal(h, in.Offset, add)
		if err != nil {
			return status(err)
		}
		if full {
			return raw.OK
		}
		in.Offset = extraPos
	}
	fs.readExtra(h, in.Offset-extraPos, add)
	return raw.OK
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
func (fs *tree) readExtra(h *handle, i uint64, add func(*handle, raw.DirEntry) bool) {
	x := h.n.extra.Load()
	if x == nil {
		return
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
			return
		}
	}
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
