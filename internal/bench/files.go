package bench

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// lapse is longer than the names and attributes of a live host are believed.
const lapse = 1200 * time.Millisecond

// fileWorkloads are about names, attributes and small files.
func fileWorkloads() []Workload {
	return []Workload{
		{Name: "stat-one", Title: "stat a file 100,000 times", run: func(p place) error {
			path := treeFile(p, 0)
			return repeat(100_000, func(int) error { return stat(path) })
		}},
		{Name: "stat-many", Title: "stat 10,000 files, again at once", run: func(p place) error {
			return repeat(treeFiles, func(i int) error { return stat(treeFile(p, i)) })
		}},
		{Name: "stat-many-later", Title: "stat 10,000 files, again later", pause: lapse, run: func(p place) error {
			return repeat(treeFiles, func(i int) error { return stat(treeFile(p, i)) })
		}},
		{Name: "open-one", Title: "open and close a file 20,000 times", run: func(p place) error {
			path := treeFile(p, 0)
			return repeat(20_000, func(int) error { return readWhole(path, nil) })
		}},
		{Name: "open-many", Title: "open, read and close 10,000 files", run: func(p place) error {
			buf := make([]byte, 16*kib)
			return repeat(treeFiles, func(i int) error { return readWhole(treeFile(p, i), buf) })
		}},
		{
			Name: "postmark", Title: "PostMark-like: 1,000 small files, 4,000 transactions", writes: true,
			prepare: func(place) error { return nil }, run: func(p place) error { return postmark(p.scratch) },
		},
	}
}

func repeat(n int, do func(i int) error) error {
	for i := range n {
		if err := do(i); err != nil {
			return err
		}
	}
	return nil
}

func stat(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	return nil
}

// readWhole opens a file, reads it to its end unless buf is nil, and closes it.
func readWhole(path string, buf []byte) (err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	for n := 1; buf != nil && n > 0; {
		if n, err = unix.Read(fd, buf); err != nil {
			unix.Close(fd)
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	return unix.Close(fd)
}

// writeWhole writes to a file in one go and closes it.
func writeWhole(path string, flags int, data []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|flags, 0o644)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if _, err := unix.Write(fd, data); err != nil {
		unix.Close(fd)
		return fmt.Errorf("write to %s: %w", path, err)
	}
	return unix.Close(fd)
}

// postmark does what the benchmark of that name did: it makes a pool of small files of 500 bytes to 9.77 KiB; each
// transaction reads or appends to one, and makes or removes one; in the end all are removed.
func postmark(scratch string) error {
	const (
		files        = 1_000
		transactions = 4_000
		smallest     = 500
		largest      = 10_000
	)
	r := sequence(2)
	data, buf := make([]byte, largest), make([]byte, 4*largest)
	var pool []string
	made := 0
	create := func() error {
		path := filepath.Join(scratch, strconv.Itoa(made))
		made++
		pool = append(pool, path)
		return writeWhole(path, unix.O_CREAT|unix.O_EXCL, data[:smallest+r.next(largest-smallest)])
	}
	remove := func() error {
		i, last := r.next(len(pool)), len(pool)-1
		path := pool[i]
		pool[i] = pool[last]
		pool = pool[:last]
		if err := unix.Unlink(path); err != nil {
			return fmt.Errorf("unlink %s: %w", path, err)
		}
		return nil
	}
	for range files {
		if err := create(); err != nil {
			return err
		}
	}
	for range transactions {
		path := pool[r.next(len(pool))]
		var err error
		if r.next(2) == 0 {
			err = readWhole(path, buf)
		} else {
			err = writeWhole(path, unix.O_APPEND, data[:smallest])
		}
		if r.next(2) == 0 {
			err = errors.Join(err, create())
		} else if len(pool) > 1 {
			err = errors.Join(err, remove())
		}
		if err != nil {
			return err
		}
	}
	for len(pool) > 0 {
		if err := remove(); err != nil {
			return err
		}
	}
	return nil
}
