//go:build integration

package fuse

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serveReserved is serve over /dev/fuse, whatever the other tests run over: Reserve is for that only.
func serveReserved(t *testing.T, o Options) *served {
	t.Helper()
	tree := files(t, "f")
	root, err := os.Open(tree)
	must(t, err)
	defer root.Close()
	o.Root = root
	return serveAs(t, tree, o, Device)
}

// Threads that were reserved do all the work: none is started, however many requests there are.
func TestReservedThreadsAreAll(t *testing.T) {
	s := serveReserved(t, Options{Writable: true, Cache: Cache{-1, -1, -1}})
	s.Reserve(8)
	before := s.conn.running.Load()
	var all sync.WaitGroup
	for range 50 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 100 {
				if _, err := os.Stat(s.path("f")); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	all.Wait()
	if n := s.conn.running.Load(); n != before {
		t.Errorf("%d server threads, and %d before", n, before)
	}
}

// A quarter of the threads that were reserved wait for locks. Others go on, and whoever would need one more is told.
func TestReservedThreadsWaitForLocks(t *testing.T) {
	s := serveReserved(t, Options{Writable: true})
	s.Reserve(8)
	host, err := os.Open(filepath.Join(s.tree, "f"))
	must(t, err)
	defer host.Close()
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_EX))
	open := func() *os.File {
		f, err := os.Open(s.path("f"))
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	lock := func(f *os.File) error { return retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH) }) }
	errs := make(chan error, 2)
	for range 2 {
		go func(f *os.File) { errs <- lock(f) }(open())
	}
	third := open()
	for limit := time.Now().Add(10 * time.Second); ; {
		// The first two may not be there yet. The third is refused as soon as they are, or waits for what a third takes.
		if s.Requests()["SETLKW"] == 2 {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the locks are not waited for")
		}
		if _, err := os.ReadDir(s.path("")); err != nil {
			t.Fatal(err)
		}
	}
	if err := lock(third); err != unix.ENOLCK {
		t.Errorf("one more lock to wait for: %v", err)
	}
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_UN))
	for range 2 {
		if err := <-errs; err != nil {
			t.Errorf("a lock that was waited for: %v", err)
		}
	}
	if err := lock(third); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
