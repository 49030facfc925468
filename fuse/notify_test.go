//go:build integration

package fuse

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWhatInotifySees watches one file on the host and in the session while both write to it.
func TestWhatInotifySees(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t, "f"), o)
		watch := func(path string) (modified func() bool) {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			_, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY)
			must(t, err)
			return func() bool {
				n, _ := unix.Read(fd, make([]byte, 4096))
				return n > 0
			}
		}
		host, session := watch(s.host("f")), watch(s.path("f"))
		write := func(path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteString("x")
			must(t, err)
		}
		write(s.host("f"))
		if !host() || session() {
			t.Error("a write on the host is seen on the host only")
		}
		write(s.path("f"))
		if !host() || !session() {
			t.Error("a write in the session is seen in the session and on the host")
		}
	})
}
