//go:build integration

package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also what is killed: a process that opens images and reads all of them, as sessions do.
func TestMain(m *testing.M) {
	if args := os.Getenv("OCI_TEST_CHILD"); args != "" {
		do := readImages
		if rest, ok := strings.CutPrefix(args, "import:"); ok {
			args, do = rest, importImages
		}
		if err := do(strings.Split(args, ":")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// readImages reads images: the number of rounds, the cache, its limit, the layouts.
func readImages(args []string) error {
	rounds, _ := strconv.Atoi(args[0])
	limit, _ := strconv.ParseInt(args[2], 10, 64)
	for range rounds {
		c, err := OpenCache(args[1])
		if err != nil {
			return err
		}
		c.limit, c.added = limit, 0
		for _, at := range rand.Perm(len(args) - 3) {
			if err := readImage(args[3+at], c); err != nil {
				return err
			}
		}
	}
	return nil
}

// importImages imports images and removes them: the number of rounds, the store, the layouts.
func importImages(args []string) error {
	rounds, _ := strconv.Atoi(args[0])
	s := Store{args[1]}
	for n := range rounds {
		for _, at := range rand.Perm(len(args) - 2) {
			source, err := OpenSource(Layout, args[2+at], "")
			if err != nil {
				return err
			}
			err = s.Import(context.Background(), fmt.Sprint("image", at), "", source, func(int64, int64) {})
			if err := errors.Join(err, source.Close()); err != nil {
				return err
			}
		}
		if n%2 == 1 {
			if err := s.Remove("image0"); err != nil {
				return err
			}
		}
	}
	return nil
}

func readImage(path string, c *Cache) error {
	path, tag, _ := strings.Cut(path, "#")
	i, err := Load(Layout, path, tag, OpenAsUs, c)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer i.Close()
	for n := range 16 {
		want := noise(int64(n), 10_000*(n%7))
		at, ok := i.resolve(fmt.Sprint("/d/", n))
		if !ok {
			return fmt.Errorf("%s: no file %d", path, n)
		}
		f, err := i.Open(at)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(f)
		_ = f.Close()
		if err != nil || string(got) != want {
			return fmt.Errorf("%s: file %d has other content: %w", path, n, err)
		}
	}
	return nil
}

// images makes layouts of the files that readImage wants, in layers of several kinds.
func images(t *testing.T) (paths []string) {
	t.Helper()
	for _, how := range []string{"plain", "zstd", "chunked", "stargz"} {
		var layers [][]byte
		for part := range 2 {
			layers = append(layers, tarOf(t, many(8, func(n int) tar.Header {
				n += 8 * part
				return file(fmt.Sprint("d/", n), noise(int64(n), 10_000*(n%7)))
			})...))
		}
		paths = append(paths, layout(t, how, layers...).path)
	}
	return paths
}

// memoryDir makes a directory on a file system of its own, which nobody else uses.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// longest bounds how long a process lives that is killed: a hundred of them take their time on a busy machine.
const longest = 200 * time.Millisecond

func reader(ctx context.Context, rounds int, dir string, limit int, images []string) *exec.Cmd {
	return child(ctx, append([]string{fmt.Sprint(rounds), dir, fmt.Sprint(limit)}, images...)...)
}

func child(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "OCI_TEST_CHILD="+strings.Join(args, ":"))
	return cmd
}

// intact checks that all that a cache has is whole, and that the file system has nothing else.
func intact(t *testing.T, dir string) {
	t.Helper()
	files, blocks := int64(0), int64(0)
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		files++
		if !info.Mode().IsRegular() {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		blocks += st.Blocks * 512
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		switch {
		case strings.HasSuffix(path, ".index"):
			if _, err := decodeIndex(data); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		case strings.Contains(path, "/files-"), strings.Contains(path, "/blobs/"):
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != filepath.Base(path) {
				t.Errorf("%s is half-written", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if used, had := int64(st.Blocks-st.Bfree)*st.Bsize, int64(st.Files-st.Ffree); used > blocks+files*st.Bsize || had > files {
		t.Errorf("%d bytes and %d inodes are used, and only %d and %d have names", used, had, blocks, files)
	}
}

// Wherever a process is killed that looks into an image, the cache is whole and takes no more space than what is in it.
func TestKilledReaders(t *testing.T) {
	dir, list := memoryDir(t), images(t)
	start := time.Now()
	if out, err := reader(context.Background(), 1, dir, 1<<30, list).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	whole := min(time.Since(start), longest)
	killed := 0
	for n := range 100 {
		if n%2 == 0 {
			if err := os.RemoveAll(filepath.Join(dir, "layers")); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.Int64N(int64(whole))))
		err := reader(ctx, 100, dir, 512<<10, list).Run()
		cancel()
		if err != nil {
			killed++
		}
		intact(t, dir)
		if t.Failed() {
			t.Fatalf("after %d", n)
		}
	}
	if killed != 100 {
		t.Errorf("%d of 100 were killed", killed)
	}
	if out, err := reader(context.Background(), 1, dir, 1<<30, list).CombinedOutput(); err != nil {
		t.Errorf("after all: %v\n%s", err, out)
	}
}

// Many sessions with one cache that is too small for them all and is removed now and then do not disturb each other.
func TestConcurrentReaders(t *testing.T) {
	dir, list := memoryDir(t), images(t)
	const readers = 6
	type end struct {
		out []byte
		err error
	}
	ended := make(chan end, readers)
	for range readers {
		go func() {
			out, err := reader(context.Background(), 4, dir, 512<<10, list).CombinedOutput()
			ended <- end{out, err}
		}()
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for left := readers; left > 0; {
		select {
		case e := <-ended:
			left--
			if e.err != nil {
				t.Errorf("%v: %s", e.err, bytes.TrimSpace(e.out))
			}
		case <-tick.C:
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) > 0 {
				_ = os.RemoveAll(filepath.Join(dir, entries[rand.IntN(len(entries))].Name())) // they write to it
			}
		}
	}
	intact(t, dir)
}

// Wherever an import or a removal is killed, the images of the store are whole, and the next import gives back what was not finished.
func TestKilledImports(t *testing.T) {
	dir, list := memoryDir(t), images(t)
	s := Store{filepath.Join(dir, "store")}
	args := append([]string{"import", "1000", s.Path}, list...)
	start := time.Now()
	if out, err := child(context.Background(), append([]string{"import", "2", s.Path}, list...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	whole, seen, c := min(time.Since(start), longest), 0, cache(t)
	for n := range 100 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.Int64N(int64(whole))))
		out, err := child(ctx, args...).CombinedOutput()
		cancel()
		if err == nil || len(out) > 0 {
			t.Fatalf("after %d: %v\n%s", n, err, out)
		}
		intact(t, dir)
		imported, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range imported {
			seen++
			if err := readImage(s.Path+"#"+i.Name, c); err != nil {
				t.Errorf("after %d: %v", n, err)
			}
		}
		if t.Failed() {
			return
		}
	}
	if seen < 100 {
		t.Errorf("only %d images were seen", seen)
	}
	for n := range list {
		if err := s.Remove(fmt.Sprint("image", n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	source, err := OpenSource(Layout, layout(t, "plain", tarOf(t, file("a", "a"))).path, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(context.Background(), "small", "", source, silent); err != nil {
		t.Error(err)
	}
	if blobs, partial := s.blobs(t); blobs != 3 || partial != 0 {
		t.Errorf("%d blobs are left, %d of them partial", blobs, partial)
	}
	intact(t, dir)
}
