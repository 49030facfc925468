package fuse

import (
	"sync"
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// listings are for directories that nobody opens: where OPENDIR fails with ENOSYS, the kernel sends neither that nor RELEASEDIR any
// more, checks permissions by itself as ever, and reads directories by number and position alone (FUSE_NO_OPENDIR_SUPPORT, Linux
// 5.1). What it has read to the end it keeps, until the directory's time of change moves or it is told to drop it: then a walk over what
// is in memory asks us nothing at all.
//
// So whoever reaches the mount sees the names that are in memory without Options.Allow being asked; hence Options.Guarded. And a list that is
// not told of has to be dropped before it is older than what is in it may be: see kept.
type listings struct {
	unopened bool // OPENDIR is not wanted

	mu      sync.Mutex
	streams map[spot]*stream // what was read of directories, by where reading goes on
	now     uint32
	short   []kept // lists of directories that are not watched,
	long    []kept // and of others; the oldest first
}

// spot is a place in a directory that is being read.
type spot struct {
	node, pos uint64
}

// stream is a directory that is being read.
type stream struct {
	*handle        // nil at the end
	used    uint32 // see age
}

// kept is a list that the kernel keeps.
type kept struct {
	node  uint64
	at    int64 // since when, in nanoseconds since 1970
	again bool  // it was told to drop it; the answer may have reached it only after that
}

const maxStreams = 64

// readUnopened lists a directory that was not opened.
func (fs *tree) readUnopened(in *raw.ReadIn, add func(*handle, raw.DirEntry, belief) bool) raw.Status {
	n := fs.inodes.get(in.NodeId)
	if n == nil {
		return raw.Status(unix.ESTALE)
	}
	if !fs.listings.unopened || !n.isDir() {
		return raw.EBADF
	}
	if !fs.allowed(&in.InHeader) {
		return raw.EACCES
	}
	h, ended := fs.listings.resume(spot{n.node, in.Offset})
	if ended {
		fs.noteList(n)
		return raw.OK
	}
	if h == nil {
		var err error
		if h, err = fs.openDir(n, 0); err != nil {
			return status(goneDir(err))
		}
	}
	b, last := fs.believeList(h, in.Offset), in.Offset
	full, err := fs.list(h, in.Offset, func(h *handle, e raw.DirEntry) bool {
		if !add(h, e, b) {
			return false
		}
		last = e.Off
		return true
	})
	switch {
	case err == nil && full:
		fs.listings.pause(spot{n.node, last}, h)
		return raw.OK
	case err == nil && last == in.Offset:
		fs.noteList(n)
	case err == nil && n.extra.Load() == nil:
		fs.listings.pause(spot{n.node, last}, nil) // the next request is for what is not there any more
	}
	h.close()
	return status(goneDir(err))
}

// goneDir is the error for who has a directory open that is not there any more, if that is what it was.
func goneDir(err error) error {
	if err == unix.ESTALE {
		return unix.ENOENT
	}
	return err
}

// withDir calls f with a directory that was not opened.
func (fs *tree) withDir(in *raw.InHeader, f func(*handle) raw.Status) raw.Status {
	n := fs.inodes.get(in.NodeId)
	switch {
	case n == nil:
		return raw.Status(unix.ESTALE)
	case !fs.listings.unopened || !n.isDir():
		return raw.EBADF
	case !fs.allowed(in):
		return raw.EACCES
	}
	h, err := fs.openDir(n, 0)
	if err != nil {
		return status(goneDir(err))
	}
	defer h.close()
	return f(h)
}

// close closes a directory that is in no table.
func (h *handle) close() {
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
}

// resume returns the directory whose reading goes on at a place, if there is one, and whether that is its end.
func (l *listings) resume(at spot) (h *handle, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[at]
	if s == nil {
		return nil, false
	}
	delete(l.streams, at)
	return s.handle, s.handle == nil
}

// pause keeps what is left of a directory; nil: nothing.
func (l *listings) pause(at spot, h *handle) {
	l.mu.Lock()
	var old []*stream
	if s := l.streams[at]; s != nil {
		old = append(old, s)
	} else if len(l.streams) >= maxStreams {
		for at, s := range l.streams { // any
			delete(l.streams, at)
			old = append(old, s)
			break
		}
	}
	if l.streams == nil {
		l.streams = make(map[spot]*stream)
	}
	l.streams[at] = &stream{h, l.now}
	l.mu.Unlock()
	closeStreams(old)
}

func closeStreams(list []*stream) {
	for _, s := range list {
		if s.handle != nil {
			s.close()
		}
	}
}

// age closes what nobody goes on with, once a second, or all.
func (l *listings) age(all bool) {
	l.mu.Lock()
	l.now++
	var old []*stream
	for at, s := range l.streams {
		if all || l.now-s.used > idle {
			delete(l.streams, at)
			old = append(old, s)
		}
	}
	l.mu.Unlock()
	closeStreams(old)
}

// noteList is called when the kernel has read a directory to its end, and keeps the list.
func (fs *tree) noteList(n *inode) {
	if n.made || fs.lastLong() {
		return
	}
	l := &fs.listings
	l.mu.Lock()
	defer l.mu.Unlock()
	k := kept{node: n.node, at: time.Now().UnixNano()}
	if n.watching() && fs.recently(n.watch.Load().listed.Load()) {
		l.long = append(l.long, k)
	} else {
		l.short = append(l.short, k)
	}
}

// dropLists has the kernel drop lists, once a second: of what is not watched the next time and once more, as the kernel may not have taken in
// the answer yet; of what is watched, and told of otherwise, when its entries are not believed for much longer.
func (fs *tree) dropLists() {
	l := &fs.listings
	l.mu.Lock()
	short := l.short
	l.short = nil
	for _, k := range short {
		if !k.again {
			k.again = true
			l.short = append(l.short, k)
		}
	}
	due := 0
	for due < len(l.long) && !fs.recently(l.long[due].at) {
		due++
	}
	drop := append(short, l.long[:due]...)
	l.long = l.long[due:]
	l.mu.Unlock()
	for _, k := range drop {
		fs.conn.write(expiry(k.node, true))
	}
}
