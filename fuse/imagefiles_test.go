//go:build integration

package fuse

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// madeFile is a file of an image that a test makes. One without a mode is a regular file with its name for content.
type madeFile struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	target   string // of a symbolic link
	xattrs   map[string]string
	refused  uint32       // what Permits refuses
	broken   *atomic.Bool // not nil and set: it cannot be opened

	n, parent uint32
	content   string
	names     []string
	children  map[string]*madeFile
}

// madeImage is a tree of them, and implements Files.
type madeImage struct {
	dir  string // with the contents, by inode number
	list []*madeFile
}

// makeImage makes an image. Directories that are not told of have mode 0755. Contents are in dir.
func makeImage(t testing.TB, dir string, all map[string]madeFile) *madeImage {
	t.Helper()
	i := &madeImage{dir: dir}
	var at func(name string) *madeFile
	add := func(name string, f *madeFile) *madeFile {
		f.n, f.children = uint32(len(i.list)), map[string]*madeFile{}
		i.list = append(i.list, f)
		if name != "." {
			up := at(path.Dir(name))
			f.parent = up.n
			up.children[path.Base(name)] = f
			up.names = append(up.names, path.Base(name))
		}
		if f.mode&unix.S_IFMT == unix.S_IFREG {
			f.content = name
			must(t, os.WriteFile(i.content(f.n), []byte(name), 0o600))
		}
		return f
	}
	at = func(name string) *madeFile {
		if name == "." && len(i.list) > 0 {
			return i.list[0]
		}
		if name != "." {
			if f := at(path.Dir(name)).children[path.Base(name)]; f != nil {
				return f
			}
		}
		f := all[name]
		if f.mode&unix.S_IFMT == 0 {
			f.mode |= unix.S_IFDIR | 0o755
		}
		return add(name, &f)
	}
	at(".")
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f := all[name]
		if f.mode == 0 {
			f.mode = unix.S_IFREG | 0o644
		}
		if f.mode&unix.S_IFMT == unix.S_IFDIR {
			at(name)
			continue
		}
		add(name, &f)
	}
	return i
}

// serveImage mounts an image for the length of a test.
func serveImage(t testing.TB, all map[string]madeFile, o Options) *served {
	t.Helper()
	dir := tempDir(t)
	o.Files = makeImage(t, dir, all)
	return serveOn(t, dir, o)
}

func (i *madeImage) content(n uint32) string {
	return filepath.Join(i.dir, strings.Repeat("x", int(n)+1))
}

func (i *madeImage) Len() int { return len(i.list) }

func (i *madeImage) Stat(n uint32, st *unix.Stat_t) {
	f := i.list[n]
	*st = unix.Stat_t{Mode: f.mode, Uid: f.uid, Gid: f.gid, Rdev: f.rdev, Nlink: 1, Size: int64(len(f.content) + len(f.target))}
	st.Mtim = unix.Timespec{Sec: 1_000_000_000, Nsec: 7}
}

func (i *madeImage) Lookup(dir uint32, name string) (uint32, bool) {
	f := i.list[dir].children[name]
	if f == nil {
		return 0, false
	}
	return f.n, true
}

func (i *madeImage) Child(dir uint32, number int) (string, uint32, bool) {
	d := i.list[dir]
	if number < 0 || number >= len(d.names) {
		return "", 0, false
	}
	return d.names[number], d.children[d.names[number]].n, true
}

func (i *madeImage) Parent(dir uint32) uint32           { return i.list[dir].parent }
func (i *madeImage) Readlink(n uint32) string           { return i.list[n].target }
func (i *madeImage) Bytes() uint64                      { return 1 << 20 }
func (i *madeImage) Statfs(st *unix.Statfs_t) error     { return unix.Statfs(i.dir, st) }
func (i *madeImage) Permits(n uint32, want uint32) bool { return i.list[n].refused&want == 0 }

func (i *madeImage) Xattr(n uint32, name string) (string, bool) {
	v, ok := i.list[n].xattrs[name]
	return v, ok
}

func (i *madeImage) Xattrs(n uint32) (names []string) {
	for name := range i.list[n].xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (i *madeImage) Open(n uint32) (*os.File, error) {
	if b := i.list[n].broken; b != nil && b.Load() {
		return nil, unix.EBADMSG
	}
	return os.Open(i.content(n))
}
