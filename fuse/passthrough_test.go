//go:build integration

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// GETXATTR is for security.capability, before the first write after the attributes of a file were read: what they say
// of set-id bits is no longer sure then (fuse_change_attributes).

// upcalls counts the requests that f causes.
func upcalls(s *served, f func()) map[string]uint64 {
	before := s.Requests()
	f()
	diff := make(map[string]uint64)
	for op, n := range s.Requests() {
		if d := n - before[op]; d > 0 && op != "FORGET" && op != "BATCH_FORGET" && op != "INTERRUPT" {
			diff[op] = d
		}
	}
	return diff
}

// TestUpcalls holds the number of requests that everyday operations cost, so that it does not creep up. RELEASE is not
// waited for by anybody and is left out.
func TestUpcalls(t *testing.T) {
	tree := files(t, "small", "dir/sub/f", "link -> small")
	must(t, os.WriteFile(filepath.Join(tree, "big"), make([]byte, 1<<20), 0o644))
	for i := range 100 {
		must(t, os.WriteFile(fmt.Sprintf("%s/dir/%03d", tree, i), nil, 0o644))
	}
	buf := make([]byte, 4096)
	open := func(path string, flags int, f func(fd int)) {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
		must(t, err)
		f(fd)
		unix.Close(fd)
	}
	read := func(fd int) {
		_, err := unix.Read(fd, buf)
		must(t, err)
	}
	write := func(fd int) {
		for range 16 {
			_, err := unix.Write(fd, buf)
			must(t, err)
		}
	}
	for _, pass := range []bool{true, false} {
		s := serve(t, tree, Options{Writable: true, Passthrough: pass, Cache: Cache{Entry: Forever, Attr: Forever, Negative: Forever}})
		stat := func(name string) {
			var st unix.Stat_t
			_ = unix.Stat(s.path(name), &st)
		}
		for _, c := range []struct {
			what string
			do   func()
			want [2]string // with passthrough, without
		}{
			{"first stat", func() { stat("dir/sub/f") }, [2]string{"LOOKUP:3", "LOOKUP:3"}},
			{"next stat", func() { stat("dir/sub/f") }, [2]string{"", ""}},
			{"stat of a missing file", func() { stat("dir/missing") }, [2]string{"LOOKUP:1", "LOOKUP:1"}},
			{"again", func() { stat("dir/missing") }, [2]string{"", ""}},
			{"first symlink", func() { stat("link") }, [2]string{"LOOKUP:2 READLINK:1", "LOOKUP:2 READLINK:1"}},
			{"next symlink", func() { stat("link") }, [2]string{"", ""}},
			{"open, read, close a small file", func() { open(s.path("small"), unix.O_RDONLY, read) }, [2]string{"OPEN:1", "OPEN:1 READ:1"}},
			{"again", func() { open(s.path("small"), unix.O_RDONLY, read) }, [2]string{"OPEN:1", "OPEN:1"}},
			{"access", func() { must(t, unix.Access(s.path("small"), unix.R_OK)) }, [2]string{"", ""}},
			{
				"open, write 64 KiB, close", func() { open(s.path("big"), unix.O_WRONLY, write) },
				[2]string{"FLUSH:1 GETXATTR:1 LOOKUP:1 OPEN:1", "FLUSH:1 GETXATTR:1 LOOKUP:1 OPEN:1 WRITE:16"},
			},
			{
				"create, write 64 KiB, close", func() { open(s.path("new"), unix.O_CREAT|unix.O_WRONLY, write) },
				[2]string{"CREATE:1 FLUSH:1 GETXATTR:1 LOOKUP:1", "CREATE:1 FLUSH:1 GETXATTR:1 LOOKUP:1 WRITE:16"},
			},
			{"list 102 entries with attributes", func() {
				entries, err := os.ReadDir(s.path("dir"))
				must(t, err)
				for _, e := range entries {
					stat("dir/" + e.Name())
				}
			}, [2]string{"GETATTR:1 OPENDIR:1 READDIRPLUS:4", "GETATTR:1 OPENDIR:1 READDIRPLUS:4"}},
			{"again", func() {
				entries, err := os.ReadDir(s.path("dir"))
				must(t, err)
				for _, e := range entries {
					stat("dir/" + e.Name())
				}
			}, [2]string{}},
		} {
			want := c.want[1]
			if pass {
				want = c.want[0]
			}
			got := upcalls(s, c.do)
			delete(got, "RELEASE")
			delete(got, "RELEASEDIR")
			if fmt.Sprint("map[", want, "]") != fmt.Sprint(got) {
				t.Errorf("passthrough %v, %s: %v, want %s", pass, c.what, got, want)
			}
		}
		must(t, os.Remove(s.path("new")))
		s.unmount(t)
	}
}
