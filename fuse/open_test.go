//go:build integration

package fuse

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var forever = Cache{Forever, Forever, Forever}

// TestSharedOpensAreApart has two opens of one file share what is behind them, and wants nobody to notice.
func TestSharedOpensAreApart(t *testing.T) {
	s := serve(t, files(t, "f"), Options{Writable: true, Passthrough: true, Cache: forever})
	before := openFDs(t)
	a, err := os.Open(s.path("f"))
	must(t, err)
	defer a.Close()
	one := openFDs(t) - before
	b, err := os.Open(s.path("f"))
	must(t, err)
	defer b.Close()
	if two := openFDs(t) - before; two != one+1 { // the test's own
		t.Errorf("%d descriptors for two open files, %d for one", two, one)
	}
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	wantErr(t, "flock by way of another open", unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(t, a.Close())
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	host, err := os.Open(s.host("f"))
	must(t, err)
	defer host.Close()
	wantErr(t, "flock on the host", unix.Flock(int(host.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)

	// The one that is left works without the name, and sees what the host writes.
	must(t, os.WriteFile(s.host("f"), []byte("new"), 0o644))
	must(t, os.Remove(s.host("f")))
	buf := make([]byte, 8)
	n, err := b.ReadAt(buf, 0)
	if string(buf[:n]) != "new" {
		t.Errorf("read %q (%v), want %q", buf[:n], err, "new")
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(b.Fd()), &st))
}

// TestClosedFilesAreLetGo wants the disk's space back a while after the last close, and what the session removes at once.
func TestClosedFilesAreLetGo(t *testing.T) {
	s := serve(t, files(t, "f", "g"), Options{Writable: true, Passthrough: true, Cache: forever})
	before := openFDs(t)
	wantContent(t, s.path("f"), "f")
	wantContent(t, s.path("g"), "g")
	o := &s.FileSystem.tree.opens
	count := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.states)
	}
	must(t, os.Remove(s.path("g")))
	waitFor(t, "the removed file is let go", func() bool { return count() == 1 })
	for range idle + 1 {
		must(t, s.FileSystem.tree.threads.run(func() error { s.FileSystem.tree.ageOpens(); return nil }))
	}
	waitFor(t, "the unused file is let go", func() bool { return count() == 0 })
	waitFor(t, "descriptors are closed", func() bool { s.FileSystem.tree.descs.age(); return openFDs(t) <= before })
}

// TestSetIDAfterPassthrough writes to a file that got set-id bits after it was registered for passthrough.
func TestSetIDAfterPassthrough(t *testing.T) {
	s := serve(t, files(t, "f"), Options{Writable: true, Passthrough: true, Cache: forever})
	wantContent(t, s.path("f"), "f")
	waitFor(t, "the file is closed", func() bool {
		o := &s.FileSystem.tree.opens
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.count == 1
	})
	must(t, os.Chmod(s.path("f"), 0o777|os.ModeSetuid))
	// Root's write keeps the bit, as on a disk.
	w, err := os.OpenFile(s.path("f"), os.O_WRONLY, 0)
	must(t, err)
	_, err = w.Write([]byte("x"))
	must(t, err)
	must(t, w.Close())
	st, err := os.Stat(s.host("f"))
	must(t, err)
	if st.Mode()&os.ModeSetuid == 0 {
		t.Error("root's write took the set-user-id bit away")
	}
}

// TestLocksEndWithClose takes a lock that is free, as the one before has closed the file, without waiting.
func TestLocksEndWithClose(t *testing.T) {
	s := serve(t, files(t, "f"), Options{Writable: true, Passthrough: true, Cache: forever})
	for i := range 300 {
		f, err := os.Open(s.path("f"))
		must(t, err)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Fatalf("flock, round %d: %v", i, err)
		}
		must(t, f.Close())
	}
	// A POSIX lock is a process's, so that takes processes.
	for range 30 {
		child(t, "lock", s.path("f"), "shared")
		child(t, "lock", s.path("f"), "exclusive")
	}
}

// lockChild takes a POSIX lock that must be free.
func lockChild(args []string) error {
	flags, lock := os.O_RDONLY, unix.Flock_t{Type: unix.F_RDLCK}
	if args[1] == "exclusive" {
		flags, lock.Type = os.O_RDWR, unix.F_WRLCK
	}
	f, err := os.OpenFile(args[0], flags, 0)
	if err != nil {
		return err
	}
	return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock)
}
