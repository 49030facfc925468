//go:build integration

package fuse

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRandomHostChangesAreTold has two threads change a tree at random while four of the session look at it: two of the host, or
// one of the host and one of a session that may write. Whenever they pause, the session must soon see just what there is, and it
// remembers for ever what it is not told of.
func TestRandomHostChangesAreTold(t *testing.T) {
	for _, writable := range []bool{false, true} {
		t.Run(fmt.Sprintf("writable=%v", writable), func(t *testing.T) { testRandomHostChangesAreTold(t, writable) })
	}
}

func testRandomHostChangesAreTold(t *testing.T, writable bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := watching(t, writable, "a", "d/a", "d/e/a")
	dirs := []string{".", "d", "d/e", "f", "f/g"}
	names := []string{"a", "b", "c", "d", "e", "f", "g"}
	pick := func(r *rand.Rand) string {
		return filepath.Join(dirs[r.IntN(len(dirs))], names[r.IntN(len(names))])
	}
	change := func(r *rand.Rand, in func(...string) string) {
		path := in(pick(r))
		switch r.IntN(12) {
		case 0, 1, 2:
			_ = os.WriteFile(path, make([]byte, r.IntN(10_000)), 0o644)
		case 3:
			if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
				_, _ = f.WriteString("more")
				f.Close()
			}
		case 4:
			_ = os.Mkdir(path, 0o755)
		case 5, 6:
			_ = os.Rename(path, in(pick(r)))
		case 7:
			_ = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, in(pick(r)), unix.RENAME_EXCHANGE)
		case 8:
			_ = os.Chmod(path, 0o700|fs.FileMode(r.IntN(0o100)))
		case 9:
			_ = os.Symlink(fmt.Sprint(r.IntN(1000)), path)
		case 10:
			_ = os.Link(path, in(pick(r)))
		case 11:
			if os.Remove(path) != nil && r.IntN(4) == 0 {
				_ = os.RemoveAll(path)
			}
		}
	}
	var stop atomic.Bool
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop.Store(true)
	for i := range 4 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			r := rand.New(rand.NewPCG(seed, uint64(100+i)))
			for !stop.Load() {
				path := s.path(pick(r))
				_, _ = os.Lstat(path)
				_, _ = os.ReadDir(path)
				_, _ = os.Readlink(path)
				if f, err := os.Open(path); err == nil {
					_, _ = f.Stat()
					f.Close()
				}
			}
		}()
	}
	for round := range 150 {
		var writers sync.WaitGroup
		for i := range 2 {
			writers.Add(1)
			go func() {
				defer writers.Done()
				runtime.LockOSThread() // see watching; the thread ends with the goroutine
				r := rand.New(rand.NewPCG(seed, uint64(1000*round+i)))
				in := s.host
				if writable && i == 1 {
					in = s.path
				}
				for range 40 {
					change(r, in)
				}
			}()
		}
		writers.Wait()
		want := snapshot(s.tree)
		soon(t, fmt.Sprintf("round %d of seed %d", round, seed), func() string { return snapshot(s.mnt) }, want)
	}
}

// snapshot describes a tree.
func snapshot(root string) string {
	var b strings.Builder
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", strings.TrimPrefix(path, root), err)
			return nil
		}
		target, _ := os.Readlink(path)
		fmt.Fprintf(&b, "%s %o %d %d %d.%d %s\n", strings.TrimPrefix(path, root), st.Mode, st.Size, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, target)
		return nil
	})
	return b.String()
}
