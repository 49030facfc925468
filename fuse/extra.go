package fuse

import (
	"fmt"
	"strings"
	"sync"
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// extra is one component of the paths in Options.Extra.
type extra struct {
	name     string
	parent   *extra
	children map[string]*extra
	order    []string // of the children, for stable directory positions
	entry    *Entry   // nil: only a directory on the way
	ino      uint64

	made *inode // guarded by extras.mu
	// sticky: the tree had no such directory once, so it stays made up: if the directory turned up on the host, the
	// kernel would detach all that is mounted below the made-up one.
	sticky bool
}

type extras struct{ mu sync.Mutex }

// extraInos is where the inode numbers of made-up entries begin; no file system gets there with inoFor.
const extraInos = 0xfffe << 48

// newExtras checks paths and entries and puts them into a tree. It returns nil if there are none.
func newExtras(entries map[string]Entry) (*extra, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	top := &extra{}
	next := uint64(extraInos)
	for path, e := range entries {
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("extra entry %q: %w", path, err)
		}
		x := top
		for name := range strings.SplitSeq(path, "/") {
			if !validName(name) {
				return nil, fmt.Errorf("extra entry %q: bad path", path)
			}
			c := x.children[name]
			if c == nil {
				next++
				c = &extra{name: name, parent: x, ino: next}
				if x.children == nil {
					x.children = make(map[string]*extra)
				}
				x.children[name] = c
				x.order = append(x.order, name)
			}
			x = c
		}
		x.entry = &e
	}
	return top, top.checkParents()
}

func (e *Entry) check() error {
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK:
		return nil
	}
	return fmt.Errorf("mode %#o is neither directory, regular file nor symbolic link", e.Mode)
}

// checkParents refuses entries below something that is no directory.
func (x *extra) checkParents() error {
	if x.entry != nil && x.entry.Mode&unix.S_IFMT != unix.S_IFDIR && len(x.children) > 0 {
		return fmt.Errorf("extra entry %q is no directory but has entries below it", x.name)
	}
	for _, c := range x.children {
		if err := c.checkParents(); err != nil {
			return err
		}
	}
	return nil
}

// validName says whether a name is one component. The kernel sends nothing else.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func (x *extra) mode() uint32 {
	if x.entry == nil {
		return unix.S_IFDIR | 0o755
	}
	return x.entry.Mode
}

// child returns the entry made up or passed through under a name of a directory, or nil.
func (n *inode) child(name string) *extra {
	if x := n.extra.Load(); x != nil {
		return x.children[name]
	}
	return nil
}

// makeUp returns the inode of a made-up entry and counts one lookup.
func (fs *tree) makeUp(x *extra) *inode {
	fs.extras.mu.Lock()
	defer fs.extras.mu.Unlock()
	if x.made != nil && fs.inodes.again(x.made) {
		return x.made
	}
	n := &inode{kind: x.mode() & unix.S_IFMT, made: true}
	n.extra.Store(x)
	fs.inodes.insert(n)
	x.made = n
	return n
}

// isMade says whether x, which is on the way to an entry, was found missing in the tree before.
func (fs *tree) isMade(x *extra) bool {
	fs.extras.mu.Lock()
	defer fs.extras.mu.Unlock()
	return x.entry != nil || x.sticky
}

func (fs *tree) stick(x *extra) {
	fs.extras.mu.Lock()
	defer fs.extras.mu.Unlock()
	x.sticky = true
}

// fillMade sets the attributes of a made-up entry.
func (fs *tree) fillMade(x *extra, a *raw.Attr) { fs.ids.fillMade(x, fs.started, a) }

func (m *idMap) fillMade(x *extra, started time.Time, a *raw.Attr) {
	*a = raw.Attr{Ino: x.ino, Mode: x.mode(), Nlink: 1, Blksize: 4096}
	a.Uid, a.Gid = show(m.uid, 0), show(m.gid, 0)
	a.SetTimes(&started, &started, &started)
	switch {
	case x.entry == nil || x.mode()&unix.S_IFMT == unix.S_IFDIR:
		a.Nlink = 2
	case x.mode()&unix.S_IFMT == unix.S_IFLNK:
		a.Size = uint64(len(x.entry.Target))
	default:
		a.Size = uint64(len(x.entry.Content))
		a.Blocks = (a.Size + 511) / 512
	}
}
