package bench

import (
	"errors"
	"fmt"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	kib = 1 << 10
	mib = 1 << 20

	readSize  = 256 * mib // of the file that is read
	writeSize = 64 * mib  // of the file that is written to: small, as all of it goes to the disk afterwards
)

// dataWorkloads read and write one large file.
func dataWorkloads() []Workload {
	all := []Workload{
		reads("seq-read-128k-warm", "read 128 KiB, sequential, warm", 128*kib, 16*readSize/(128*kib), false, 0),
		reads("seq-read-4k-warm", "read 4 KiB, sequential, warm", 4*kib, 2*readSize/(4*kib), false, 0),
		reads("rand-read-128k-warm", "read 128 KiB, random, warm", 128*kib, 16*readSize/(128*kib), true, 0),
		reads("rand-read-4k-warm", "read 4 KiB, random, warm", 4*kib, 2*readSize/(4*kib), true, 0),
		reads("seq-read-128k-cold", "read 128 KiB, sequential, cold", 128*kib, readSize/(128*kib), false, 0).coldly(),
		reads("seq-read-4k-cold", "read 4 KiB, sequential, cold", 4*kib, readSize/2/(4*kib), false, 0).coldly(),
		reads("rand-read-128k-cold", "read 128 KiB, random, cold", 128*kib, 200, true, 0).coldly(),
		reads("rand-read-4k-cold", "read 4 KiB, random, cold", 4*kib, 800, true, 0).coldly(),
		mapped("mmap-seq-warm", "mmap read, sequential, warm", false),
		mapped("mmap-rand-warm", "mmap read, random, warm", true),
		mapped("mmap-seq-cold", "mmap read, sequential, cold", false).coldly(),
		writes("seq-write-128k", "write 128 KiB, sequential", 128*kib, 8*writeSize/(128*kib), false, 0),
		writes("seq-write-4k", "write 4 KiB, sequential", 4*kib, 4*writeSize/(4*kib), false, 0),
		writes("rand-write-128k", "write 128 KiB, random", 128*kib, 8*writeSize/(128*kib), true, 0),
		writes("rand-write-4k", "write 4 KiB, random", 4*kib, 4*writeSize/(4*kib), true, 0),
		{Name: "new-file-128k", Title: "write a new file, 128 KiB at a time", writes: true, run: func(p place) error {
			return newFile(filepath.Join(p.scratch, "new"), false)
		}},
		{Name: "new-file-fdatasync", Title: "the same, and fdatasync", writes: true, run: func(p place) error {
			return newFile(filepath.Join(p.scratch, "new"), true)
		}},
		reads("direct-read-128k", "O_DIRECT read 128 KiB, sequential", 128*kib, readSize/4/(128*kib), false, unix.O_DIRECT),
		reads("direct-read-4k", "O_DIRECT read 4 KiB, random", 4*kib, 800, true, unix.O_DIRECT),
		writes("direct-write-128k", "O_DIRECT write 128 KiB, sequential", 128*kib, writeSize/2/(128*kib), false, unix.O_DIRECT),
		writes("direct-write-4k", "O_DIRECT write 4 KiB, random", 4*kib, 800, true, unix.O_DIRECT),
	}
	for i := range all {
		w := &all[i]
		if !w.cold && (w.Name[:3] == "seq" || w.Name[:4] == "rand" || w.Name[:4] == "mmap") {
			w.Bar = barData
		}
	}
	return all
}

// coldly is the workload with nothing in memory.
func (w Workload) coldly() Workload {
	w.cold = true
	return w
}

// reads reads blocks of the file that all settings share.
func reads(name, title string, size, count int, random bool, flags int) Workload {
	w := Workload{Name: name, Title: title, run: func(p place) error {
		return blocks(p.data("big"), unix.O_RDONLY|flags, size, count, readSize/size, random, unix.Pread)
	}}
	if flags&unix.O_DIRECT != 0 {
		w.cold = true // or the file system would have to drop what it has in memory
	} else {
		w.prepare = func(p place) error {
			return blocks(p.data("big"), unix.O_RDONLY, mib, readSize/mib, readSize/mib, false, unix.Pread)
		}
	}
	return w
}

// writes writes blocks of a file that exists.
func writes(name, title string, size, count int, random bool, flags int) Workload {
	return Workload{Name: name, Title: title, writes: true, run: func(p place) error {
		return blocks(filepath.Join(p.work, "big"), unix.O_WRONLY|flags, size, count, writeSize/size, random, unix.Pwrite)
	}, prepare: func(p place) error {
		if flags&unix.O_DIRECT != 0 {
			return nil
		}
		return blocks(filepath.Join(p.work, "big"), unix.O_RDONLY, mib, writeSize/mib, writeSize/mib, false, unix.Pread)
	}}
}

// blocks reads or writes count blocks of a file that has total, in order, over and over, or at random.
func blocks(path string, flags, size, count, total int, random bool, transfer func(int, []byte, int64) (int, error)) (err error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	// Aligned, as O_DIRECT wants it.
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	buf[0] = 1
	r := sequence(1)
	for i := range count {
		block := i % total
		if random {
			block = r.next(total)
		}
		n, err := transfer(fd, buf, int64(block)*int64(size))
		if err != nil {
			return fmt.Errorf("%s, block %d: %w", path, block, err)
		}
		if n != size {
			return fmt.Errorf("%s, block %d: %d bytes instead of %d", path, block, n, size)
		}
	}
	return nil
}

// mapped touches each page of a mapped file.
func mapped(name, title string, random bool) Workload {
	return Workload{Name: name, Title: title, run: func(p place) error { return touch(p.data("big"), random) }}
}

func touch(path string, random bool) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, readSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap %s: %w", path, err)
	}
	defer unix.Munmap(m)
	const page = 4 * kib
	r := sequence(1)
	for i := range readSize / page {
		if random {
			i = r.next(readSize / page)
		}
		// Volatile: unsafe pointers keep the compiler from seeing that nobody wants the byte.
		keep(*(*byte)(unsafe.Pointer(&m[i*page])))
	}
	return nil
}

//go:noinline
func keep(byte) {}

// newFile writes a file that was not there.
func newFile(path string, sync bool) (err error) {
	_ = unix.Unlink(path) // of the warm-up
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	buf := make([]byte, 128*kib)
	for range 2 * writeSize / len(buf) {
		if _, err := unix.Write(fd, buf); err != nil {
			return fmt.Errorf("write to %s: %w", path, err)
		}
	}
	if sync {
		return unix.Fdatasync(fd)
	}
	return nil
}
