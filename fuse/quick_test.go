//go:build integration

package fuse

import (
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestRequestsAllocateLittle counts what is allocated for the requests that there are most of, by the server and by the test, which is one
// process.
func TestRequestsAllocateLittle(t *testing.T) {
	s := serve(t, files(t, "f", "d/g"), Options{Passthrough: true, Cache: Cache{Entry: -1, Attr: -1, Negative: -1}})
	f, err := os.Open(s.path("f"))
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	path, err := unix.BytePtrFromString(s.path("f"))
	must(t, err)
	open := func() {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, 0, uintptr(unsafe.Pointer(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		unix.Close(int(fd))
	}
	var st unix.Stat_t
	for _, c := range []struct {
		what  string
		bytes float64 // for each
		do    func()
	}{
		{"fstat", 32, func() { must(t, unix.Fstat(fd, &st)) }},
		{"open and close, with LOOKUP", 300, open},
	} {
		const times = 5000
		for range 100 {
			c.do()
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range times {
			c.do()
		}
		runtime.ReadMemStats(&after)
		if n := float64(after.TotalAlloc-before.TotalAlloc) / times; n > c.bytes {
			t.Errorf("%s: %.0f bytes each, want at most %.0f", c.what, n, c.bytes)
		} else {
			t.Logf("%s: %.0f bytes each", c.what, n)
		}
	}
}
