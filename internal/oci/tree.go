package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// inode is a file of the tree. It may have several names.
type inode struct {
	entry *entry // nil: a directory that no layer says anything of
	layer int    // that the content is in
	nlink uint32
	dir   *dir // of a directory
}

// dir is the entries of a directory.
type dir struct {
	parent uint32
	byName map[string]dirent
	order  []string
	depth  int
	hidden int // the number, from 1, of the last layer that hid what was here
}

// dirent is a name. Its layer is that which put it there, for whiteouts take only what is below.
type dirent struct {
	n     uint32
	layer int
}

// builder makes one tree of layers, from the bottom up.
type builder struct {
	inodes []inode
	layer  int
	steps  int // what was done so far, see maxSteps
}

func newBuilder() *builder {
	return &builder{inodes: []inode{{nlink: 2, dir: &dir{byName: map[string]dirent{}}}}}
}

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	maxLinks = 40 // symbolic links on one path, as for the kernel
	maxPath  = unix.PathMax
	maxNest  = maxPath / 2 // of directories
	maxSteps = 40_000_000  // an image that takes more is made to take time
)

// split takes a name of a tar file apart. A name that leads upwards is an error: no image has one by accident.
func split(name string) ([]string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("%.100q is no name", name)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, fmt.Errorf("%q leads upwards", name)
		case len(part) > unix.NAME_MAX:
			return nil, fmt.Errorf("%.100q is too long a name", part)
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// components takes the target of a symbolic link apart.
func components(target string) (parts []string) {
	for part := range strings.SplitSeq(target, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}

// walk goes down from a directory, follows symbolic links within the tree, and makes directories that are not there if told
// to. It returns the directory that it ends in.
func (b *builder) walk(at uint32, parts []string, create bool) (uint32, error) {
	links := 0
	rest := slices.Clone(parts)
	for len(rest) > 0 {
		b.steps++
		name := rest[0]
		rest = rest[1:]
		d := b.inodes[at].dir
		if name == ".." {
			at = d.parent
			continue
		}
		e, ok := d.byName[name]
		if !ok {
			if !create {
				return 0, fmt.Errorf("%q is not there", name)
			}
			if d.depth == maxNest || len(b.inodes) > 2*maxEntries {
				return 0, errors.New("there are too many directories, or too deep ones")
			}
			at = b.add(at, name, inode{dir: &dir{}, nlink: 2})
			continue
		}
		i := &b.inodes[e.n]
		switch {
		case i.dir != nil:
			at = e.n
		case i.entry.kind == tar.TypeSymlink:
			if links++; links > maxLinks {
				return 0, fmt.Errorf("there are more than %d symbolic links on the way", maxLinks)
			}
			if strings.HasPrefix(i.entry.link, "/") {
				at = 0
			}
			target := components(i.entry.link)
			if len(target)+len(rest) > maxPath {
				return 0, errors.New("the way is too long")
			}
			b.steps += (len(i.entry.link) + len(rest)) / 4
			rest = append(target, rest...)
		default:
			return 0, fmt.Errorf("%q on the way is no directory", name)
		}
	}
	return at, nil
}

// add puts a new inode into a directory in place of what has the name.
func (b *builder) add(parent uint32, name string, i inode) uint32 {
	b.remove(parent, name)
	n := uint32(len(b.inodes))
	if i.dir != nil {
		i.dir.parent, i.dir.byName, i.dir.depth = parent, map[string]dirent{}, b.inodes[parent].dir.depth+1
		b.inodes[parent].nlink++
	}
	b.inodes = append(b.inodes, i)
	b.inodes[parent].dir.byName[name] = dirent{n, b.layer}
	return n
}

// remove takes a name away, with all below it.
func (b *builder) remove(parent uint32, name string) {
	d := b.inodes[parent].dir
	e, ok := d.byName[name]
	if !ok {
		return
	}
	b.steps++
	delete(d.byName, name)
	// The inode stays in the table, without a name.
	b.inodes[e.n].nlink--
	if below := b.inodes[e.n].dir; below != nil {
		b.inodes[parent].nlink--
		for name := range below.byName {
			b.remove(e.n, name)
		}
	}
}

// hide takes away what lower layers have under a name; what this layer has put there stays.
func (b *builder) hide(parent uint32, name string) {
	b.steps++
	e, ok := b.inodes[parent].dir.byName[name]
	switch {
	case !ok:
	case b.inodes[e.n].dir != nil && b.inodes[e.n].dir.hidden == b.layer+1:
	case e.layer < b.layer && !b.touched(e.n):
		b.remove(parent, name)
	case b.inodes[e.n].dir != nil:
		b.hideAll(e.n)
	}
}

func (b *builder) hideAll(n uint32) {
	d := b.inodes[n].dir
	if d.hidden == b.layer+1 {
		return // what is here now is this layer's
	}
	d.hidden = b.layer + 1
	for name := range d.byName {
		b.hide(n, name)
	}
}

// touched says whether this layer has put something below a directory.
func (b *builder) touched(n uint32) bool {
	d := b.inodes[n].dir
	if d == nil {
		return false
	}
	if e := b.inodes[n].entry; e != nil && b.inodes[n].layer == b.layer {
		return true
	}
	for _, e := range d.byName {
		b.steps++
		if e.layer == b.layer || b.touched(e.n) {
			return true
		}
	}
	return false
}

// apply puts a layer on top of those before.
func (b *builder) apply(x *index) error {
	for i := range x.entries {
		if err := b.applyEntry(&x.entries[i]); err != nil {
			return fmt.Errorf("%.200q: %w", x.entries[i].name, err)
		}
		if b.steps > maxSteps {
			return errors.New("it takes too long to put its layers together")
		}
	}
	b.layer++
	return nil
}

func (b *builder) applyEntry(e *entry) error {
	parts, err := split(e.name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if e.kind != tar.TypeDir {
			return errors.New("the root is to be something else than a directory")
		}
		b.inodes[0].entry, b.inodes[0].layer = e, b.layer
		return nil
	}
	name := parts[len(parts)-1]
	if hidden, ok := strings.CutPrefix(name, whiteout); ok {
		return b.hides(parts[:len(parts)-1], hidden)
	}
	parent, err := b.walk(0, parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	if e.kind == tar.TypeLink {
		return b.link(parent, name, e.link)
	}
	old, there := b.inodes[parent].dir.byName[name]
	if e.kind == tar.TypeDir && there && b.inodes[old.n].dir != nil {
		b.inodes[old.n].entry, b.inodes[old.n].layer = e, b.layer
		return nil
	}
	i := inode{entry: e, layer: b.layer, nlink: 1}
	if e.kind == tar.TypeDir {
		i.dir, i.nlink = &dir{}, 2
		if b.inodes[parent].dir.depth == maxNest {
			return errors.New("directories are too deep")
		}
	}
	b.add(parent, name, i)
	return nil
}

// hides applies a whiteout: what comes after ".wh." in its name, in a directory. There may be no such directory: umoci, for one,
// also says that all is gone that was in a directory which is a file now.
func (b *builder) hides(dir []string, name string) error {
	switch name {
	case "", ".", "..":
		return errors.New("a whiteout of nothing")
	}
	parent, err := b.walk(0, dir, false)
	switch {
	case err != nil:
	case whiteout+name == opaque:
		b.hideAll(parent)
	case strings.HasPrefix(name, whiteout): // aufs's own bookkeeping
	default:
		b.hide(parent, name)
	}
	return nil
}

// link gives a file one more name.
func (b *builder) link(parent uint32, name, target string) error {
	parts, err := split(target)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return errors.New("a hard link to the root")
	}
	from, err := b.walk(0, parts[:len(parts)-1], false)
	if err != nil {
		return fmt.Errorf("a hard link to %q: %w", target, err)
	}
	e, ok := b.inodes[from].dir.byName[parts[len(parts)-1]]
	switch {
	case !ok:
		return fmt.Errorf("a hard link to %q, which is not there", target)
	case b.inodes[e.n].dir != nil:
		return fmt.Errorf("a hard link to %q, which is a directory", target)
	case b.inodes[parent].dir.byName[name].n == e.n:
		return nil // to itself
	}
	b.remove(parent, name)
	b.inodes[e.n].nlink++
	b.inodes[parent].dir.byName[name] = dirent{e.n, b.layer}
	return nil
}

// finish fixes the order of names.
func (b *builder) finish() {
	for i := range b.inodes {
		d := b.inodes[i].dir
		if d == nil {
			continue
		}
		d.order = make([]string, 0, len(d.byName))
		for name := range d.byName {
			d.order = append(d.order, name)
		}
		slices.Sort(d.order)
	}
}

// resolve finds what a path leads to, as in a root directory.
func (b *builder) resolve(name string) (uint32, bool) {
	at := uint32(0)
	for range maxLinks {
		parts := components(name)
		if strings.HasPrefix(name, "/") {
			at = 0
		}
		if len(parts) == 0 || parts[len(parts)-1] == ".." {
			at, err := b.walk(at, parts, false)
			return at, err == nil
		}
		dir, err := b.walk(at, parts[:len(parts)-1], false)
		if err != nil {
			return 0, false
		}
		e, ok := b.inodes[dir].dir.byName[parts[len(parts)-1]]
		if !ok {
			return 0, false
		}
		i := &b.inodes[e.n]
		if i.dir != nil || i.entry.kind != tar.TypeSymlink {
			return e.n, true
		}
		at, name = dir, i.entry.link
	}
	return 0, false
}
