package fuse

import (
	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir is open(2) of a directory. The kernel may keep the list of names.
func (fs *imageTree) OpenDir(_ <-chan struct{}, in *raw.OpenIn, out *raw.OpenOut) raw.Status {
	if fs.unasked {
		return raw.ENOSYS // and the kernel never asks again, see listings
	}
	dir, x, ok := fs.find(in.NodeId)
	if !ok {
		return raw.Status(unix.ESTALE)
	}
	if !fs.allowed(&in.InHeader, dir, x, unix.R_OK) {
		return raw.EACCES
	}
	out.OpenFlags = raw.FOPEN_CACHE_DIR | raw.FOPEN_KEEP_CACHE
	return raw.OK
}

// ReleaseDir closes a directory, of which nothing is remembered.
func (fs *imageTree) ReleaseDir(*raw.ReleaseIn) {}

// ReadDir lists names.
func (fs *imageTree) ReadDir(_ <-chan struct{}, in *raw.ReadIn, out *raw.DirEntryList) raw.Status {
	return fs.readDir(in, func(e raw.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names with what they lead to.
func (fs *imageTree) ReadDirPlus(_ <-chan struct{}, in *raw.ReadIn, out *raw.DirEntryList) raw.Status {
	return fs.readDir(in, func(e raw.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && e.Name != "." && e.Name != ".." {
			fs.answer(e.Ino, entry)
			entry.Attr.Ino = e.Ino
			out.FixMode(entry.Mode)
		}
		return entry != nil
	})
}

// readDir passes on entries from the position in the request until add has no room left. Positions count: "." and "..",
// the made-up entries, those of the tree.
func (fs *imageTree) readDir(in *raw.ReadIn, add func(raw.DirEntry) bool) raw.Status {
	dir, x, ok := fs.find(in.NodeId)
	if !ok {
		return raw.Status(unix.ESTALE)
	}
	if !fs.allowed(&in.InHeader, dir, x, unix.R_OK) {
		return raw.EACCES
	}
	pos := in.Offset
	for ; pos < 2; pos++ {
		if !add(raw.DirEntry{Name: []string{".", ".."}[pos], Mode: unix.S_IFDIR, Ino: in.NodeId, Off: pos + 1}) {
			return raw.OK
		}
	}
	over := x
	if x == nil {
		over = fs.below[dir]
	}
	var order []string
	if over != nil {
		order = over.order
	}
	for ; pos-2 < uint64(len(order)); pos++ {
		c := over.children[order[pos-2]]
		if c.made == nil {
			continue // listed with the tree's own
		}
		if !add(raw.DirEntry{Name: c.name, Mode: c.mode() & unix.S_IFMT, Ino: c.made.node, Off: pos + 1}) {
			return raw.OK
		}
	}
	if x != nil {
		return raw.OK
	}
	for ; ; pos++ {
		name, n, ok := fs.files.Child(dir, int(pos-2)-len(order))
		if !ok {
			return raw.OK
		}
		if over != nil && over.children[name] != nil && over.children[name].made != nil {
			continue
		}
		if !add(raw.DirEntry{Name: name, Mode: fs.kind(n), Ino: uint64(n) + 1, Off: pos + 1}) {
			return raw.OK
		}
	}
}
