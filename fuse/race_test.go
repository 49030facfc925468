//go:build integration

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNobodyIsLedOutOfTheTree has the host swap directories, symbolic links and files under the session's feet. What is
// outside of the tree must never be read, nor what is in it be changed by way of a name that leads elsewhere.
func TestNobodyIsLedOutOfTheTree(t *testing.T) {
	outside := files(t, "d/f", "secret")
	must(t, os.WriteFile(filepath.Join(outside, "d/f"), []byte("outside"), 0o644))
	tree := files(t, "d/f", "file")
	must(t, os.WriteFile(filepath.Join(tree, "d/f"), []byte("inside"), 0o644))
	must(t, os.Symlink(outside+"/d", filepath.Join(tree, "link")))
	s := serve(t, tree, Options{Writable: true, Passthrough: true, Descriptors: 4, Cache: Cache{-1, -1, -1}})

	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { // the attacker
		defer wg.Done()
		for !stop.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, s.host("d"), unix.AT_FDCWD, s.host("link"), unix.RENAME_EXCHANGE)
			_ = unix.Renameat2(unix.AT_FDCWD, s.host("d"), unix.AT_FDCWD, s.host("file"), unix.RENAME_EXCHANGE)
		}
	}()
	var read atomic.Int64
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 400 {
				// O_NOFOLLOW on each component, as the session's own kernel would otherwise follow the link,
				// which in a session leads to the session's own files.
				dir, err := unix.Open(s.path("d"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err != nil {
					continue
				}
				fd, err := unix.Openat(dir, "f", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err == nil {
					buf := make([]byte, 20)
					n, err := unix.Read(fd, buf)
					if err != nil || string(buf[:n]) != "inside" {
						t.Errorf("read %q, %v", buf[:max(n, 0)], err)
					}
					unix.Close(fd)
					read.Add(1)
				}
				name := fmt.Sprint("new", i)
				_ = unix.Mkdirat(dir, name, 0o755)
				_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
				unix.Close(dir)
			}
		}()
	}
	wg.Add(1)
	go func() { // a walk
		defer wg.Done()
		defer stop.Store(true)
		for range 300 {
			_, _ = os.ReadDir(s.path("d"))
			_ = os.Chmod(s.path("d/f"), 0o640)
		}
	}()
	wg.Wait()
	t.Logf("%d files were read", read.Load())
	if out := shell(t, `cd "$1" && find . | sort | tr '\n' ' '; cat d/f`, outside); out != ". ./d ./d/f ./secret outside" {
		t.Errorf("outside of the tree there is %q", out)
	}
}

// TestConcurrentChangesOfOneDirectory has many threads make and remove the same names.
func TestConcurrentChangesOfOneDirectory(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			v.o.Writable = true
			s := serve(t, files(t), v.o)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for j := range 150 {
						a, b := s.path(fmt.Sprint((i+j)%5)), s.path(fmt.Sprint((i*j)%5))
						fd, err := unix.Open(a, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
						if err == nil {
							if _, err := unix.Write(fd, []byte("x")); err != nil {
								t.Errorf("write: %v", err)
							}
							var st unix.Stat_t
							if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
								t.Errorf("fstat: %v, size %d", err, st.Size)
							}
							unix.Close(fd)
						} else {
							t.Errorf("open: %v", err)
						}
						for _, err := range []error{
							unix.Rename(a, b), unix.Unlink(b), unix.Link(a, b), unix.Lstat(a, new(unix.Stat_t)),
						} {
							if err != nil && err != unix.ENOENT && err != unix.EEXIST {
								t.Errorf("unexpected %v", err)
							}
						}
						if entries, err := os.ReadDir(s.mnt); err != nil || len(entries) > 5 {
							t.Errorf("list: %v, %v", entries, err)
						}
					}
				}()
			}
			wg.Wait()
			s.unmount(t)
		})
	}
}
