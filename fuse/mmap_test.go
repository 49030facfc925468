//go:build integration

package fuse

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSharedMappings writes by way of memory and reads by way of files, and the other way round.
func TestSharedMappings(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		s := serve(t, files(t), o)
		must(t, os.WriteFile(s.path("f"), make([]byte, 3*4096), 0o644))
		child(t, "mmap", s.path("f"))
		data, err := os.ReadFile(s.host("f"))
		must(t, err)
		for off, want := range map[int]string{0: "from memory", 4096: "from a file", 8192: "from a hole"} {
			if got := string(data[off : off+len(want)]); got != want {
				t.Errorf("at %d: %q, want %q", off, got, want)
			}
		}
		if len(data) != 3*4096 {
			t.Errorf("%d bytes", len(data))
		}
	})
}

func mmapChild(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "from memory")
	buf := make([]byte, 11)
	if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != "from memory" {
		return fmt.Errorf("read %q, %w", buf, err)
	}
	if _, err := f.WriteAt([]byte("from a file"), 4096); err != nil {
		return err
	}
	if got := string(m[4096 : 4096+11]); got != "from a file" {
		return fmt.Errorf("memory has %q", got)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096); err != nil {
		return err
	}
	copy(m[8192:], "from a hole")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	private, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	copy(private, "for me only")
	return unix.Munmap(m)
}
