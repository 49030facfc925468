//go:build integration

package fuse

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// evict closes all descriptors that may be closed.
func (s *served) evict(t *testing.T) {
	t.Helper()
	ds := s.FileSystem.tree.descs
	ds.mu.Lock()
	limit := ds.limit
	ds.limit = 0
	fds := ds.trim()
	ds.limit = limit
	ds.mu.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestPlaces loses the descriptors of inodes without handles in every way that leads to them.
func TestPlaces(t *testing.T) {
	v := variant{overlay: true}
	s := serve(t, v.tree(t), Options{Writable: true, Cache: Cache{-1, -1, -1}})
	must(t, os.MkdirAll(s.path("d1/d2/d3"), 0o755))
	must(t, os.WriteFile(s.path("d1/d2/d3/f"), []byte("content"), 0o644))
	hold := func(name string) int {
		t.Helper()
		fd, err := unix.Open(s.path(name), unix.O_PATH|unix.O_NOFOLLOW, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	dir, file := hold("d1/d2/d3"), hold("d1/d2/d3/f")
	var st unix.Stat_t
	lost := func(what string, fd int, want error) {
		t.Helper()
		s.evict(t)
		wantErr(t, what, unix.Fstat(fd, &st), want)
	}
	lost("file", file, nil)
	lost("directory", dir, nil)

	// Renamed by the session.
	must(t, os.Rename(s.path("d1"), s.path("e1")))
	must(t, os.Rename(s.path("e1/d2/d3/f"), s.path("e1/d2/g")))
	lost("file that was renamed", file, nil)
	lost("directory whose parent was renamed", dir, nil)
	must(t, os.WriteFile(s.path("x"), nil, 0o644))
	other := hold("x")
	must(t, unix.Renameat2(unix.AT_FDCWD, s.path("x"), unix.AT_FDCWD, s.path("e1/d2/g"), unix.RENAME_EXCHANGE))
	lost("file that was exchanged", file, nil)
	lost("the other that was exchanged", other, nil)
	if st.Size != 0 {
		t.Errorf("the other file has %d bytes", st.Size)
	}

	// Of two names one goes, then the other.
	must(t, os.Link(s.path("x"), s.path("y")))
	must(t, os.Remove(s.path("y")))
	lost("file whose name was removed", file, nil)
	wantContent(t, s.path("x"), "content")
	lost("file that was found by its other name", file, nil)
	must(t, os.Remove(s.path("x")))
	lost("file without a name", file, nil)

	// By the host: whoever holds it has to wait until it was found again.
	must(t, os.Rename(s.host("e1"), s.host("h1")))
	lost("directory that the host moved", dir, unix.ESTALE)
	_, err := os.Stat(s.path("h1/d2/d3"))
	must(t, err)
	lost("directory that was found again", dir, nil)
	must(t, os.Rename(s.host("h1/d2/d3"), s.host("h1/d2/old")))
	must(t, os.Mkdir(s.host("h1/d2/d3"), 0o755))
	lost("directory that the host replaced", dir, unix.ESTALE)
	must(t, os.WriteFile(s.host("h1/d2/d3/new"), []byte("new"), 0o644))
	s.evict(t)
	wantContent(t, s.path("h1/d2/d3/new"), "new")

	// A circle.
	tree := s.FileSystem.tree
	var a, b *inode
	tree.inodes.each(func(n *inode) {
		switch p := tree.descs.placeOf(n); {
		case p == nil:
		case p.name == "h1":
			a = n
		case p.name == "d2":
			b = n
		}
	})
	tree.descs.place(a, b, "h1")
	s.evict(t)
	if err := tree.threads.run(func() error { _, err := tree.descs.borrow(b); return err }); err != unix.ESTALE {
		t.Errorf("places in a circle: %v, want ESTALE", err)
	}
	wantContent(t, s.path("h1/d2/d3/new"), "new")
}
