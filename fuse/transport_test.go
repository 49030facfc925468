//go:build integration

package fuse

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTransport is how long a request takes over either transport, with one client and with two at a time. It wants -transport=io_uring,
// which turns that on.
func BenchmarkTransport(b *testing.B) {
	fstat := func(path string, n int) error {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		for range n {
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
		}
		return nil
	}
	open := func(path string, n int) error {
		for range n {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
		}
		return nil
	}
	for _, threads := range []int{1, 2} {
		for _, over := range []Transport{Device, URing} {
			run := func(what string, attr time.Duration, f func(path string, n int) error) {
				b.Run(fmt.Sprintf("%s/%d/%s", what, threads, over), func(b *testing.B) {
					tree := files(b, "0", "1")
					root, err := os.Open(tree)
					must(b, err)
					defer root.Close()
					o := Options{Root: root, Passthrough: true, Cache: Cache{Forever, attr, Forever}}
					s := serveAs(b, tree, o, over)
					b.ResetTimer()
					var all sync.WaitGroup
					for i := range threads {
						all.Add(1)
						go func() {
							defer all.Done()
							if err := f(s.path(fmt.Sprint(i)), b.N); err != nil {
								b.Error(err)
							}
						}()
					}
					all.Wait()
					b.ReportMetric(float64(threads*b.N)/b.Elapsed().Seconds(), "op/s")
				})
			}
			run("fstat", -1, fstat)
			run("open", Forever, open)
		}
	}
}
