//go:build integration

package fuse

import (
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

var entriesFlag = flag.Int("entries", 50_000, "entries of the directory of TestLargeDirectory")

// TestLargeDirectory reads a directory that takes many requests, goes back to places in it, and removes entries meanwhile.
// A walk by few descriptors, at that.
func TestLargeDirectory(t *testing.T) {
	for _, v := range []variant{{name: "file handles"}, {name: "no file handles", overlay: true}} {
		t.Run(v.name, func(t *testing.T) { largeDirectory(t, v.tree(t)) })
	}
}

func largeDirectory(t *testing.T, tree string) {
	must(t, os.Mkdir(filepath.Join(tree, "d"), 0o755))
	for i := range *entriesFlag {
		must(t, os.WriteFile(filepath.Join(tree, "d", strconv.Itoa(i)), nil, 0o644))
	}
	s := serve(t, tree, Options{Writable: true, Descriptors: 64})
	before := openFDs(t)
	dir, err := os.Open(s.path("d"))
	must(t, err)
	defer dir.Close()
	fd := int(dir.Fd())

	buf := make([]byte, 64<<10)
	read := func() (entries []raw.DirEntry) {
		n, err := unix.Getdents(fd, buf)
		must(t, err)
		for rest := buf[:n]; len(rest) > 0; {
			var e raw.DirEntry
			rest = rest[e.Parse(rest):]
			entries = append(entries, e)
		}
		return entries
	}
	var all []raw.DirEntry
	seen := make(map[string]bool)
	for part := read(); len(part) > 0; part = read() {
		for _, e := range part {
			if seen[e.Name] {
				t.Fatalf("%q is listed twice", e.Name)
			}
			seen[e.Name] = true
		}
		all = append(all, part...)
	}
	if len(all) != *entriesFlag+2 {
		t.Errorf("%d entries, want %d", len(all), *entriesFlag+2)
	}
	if n := openFDs(t) - before; n > 64+8 {
		t.Errorf("%d descriptors in use after the walk, want at most the 64 that were allowed, and a few", n)
	}

	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		i := r.IntN(len(all) - 2)
		_, err := unix.Seek(fd, int64(all[i].Off), unix.SEEK_SET)
		must(t, err)
		if part := read(); len(part) == 0 || part[0].Name != all[i+1].Name {
			t.Fatalf("behind %q: %d entries, the first is not %q", all[i].Name, len(part), all[i+1].Name)
		}
	}

	// What is removed while it is read costs none of the others.
	_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	must(t, err)
	left := 0
	for part := read(); len(part) > 0; part = read() {
		for i, e := range part {
			left++
			if i%2 == 0 && e.Name != "." && e.Name != ".." {
				must(t, unix.Unlinkat(fd, e.Name, 0))
			}
		}
	}
	if left != len(all) {
		t.Errorf("%d entries while half of them are removed, want %d", left, len(all))
	}
}
