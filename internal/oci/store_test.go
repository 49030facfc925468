package oci

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func silent(int64, int64) {}

// flaky is a source that breaks off after so many bytes of each answer, and notes where it was asked to go on.
type flaky struct {
	Source
	after int64
	asked []int64
}

func (f *flaky) Blob(ctx context.Context, d Digest, from int64) (io.ReadCloser, error) {
	f.asked = append(f.asked, from)
	r, err := f.Source.Blob(ctx, d, from)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, f.after), r}, nil
}

// source opens a layout as one.
func (l laid) source() Source {
	l.t.Helper()
	s, err := OpenSource(Layout, l.path, "")
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// blobs counts what a store has.
func (s Store) blobs(t *testing.T) (blobs, partial int) {
	t.Helper()
	for dir, n := range map[string]*int{"blobs/sha256": &blobs, "partial": &partial} {
		entries, err := os.ReadDir(filepath.Join(s.Path, dir))
		if err != nil {
			t.Fatal(err)
		}
		*n = len(entries)
	}
	return blobs, partial
}

func TestStore(t *testing.T) {
	ctx := context.Background()
	s := Store{filepath.Join(t.TempDir(), "store")}
	if list, err := s.List(); len(list) > 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
	shared := tarOf(t, file("shared", noise(1, 1000)))
	a, b := layout(t, "gzip", shared, tarOf(t, file("a", "a"))), layout(t, "gzip", shared, tarOf(t, file("b", "b")))
	var last [2]int64
	for name, l := range map[string]laid{"a": a, "b": b} {
		if err := s.Import(ctx, name, "from "+name, l.source(), func(done, total int64) { last = [2]int64{done, total} }); err != nil {
			t.Fatal(err)
		}
		if last[0] != last[1] || last[0] == 0 {
			t.Errorf("progress ended at %v", last)
		}
	}
	list, err := s.List()
	if want := (Imported{"a", "from a"}); err != nil || len(list) != 2 || list[0] != want {
		t.Errorf("%v, %v", list, err)
	}
	if blobs, partial := s.blobs(t); blobs != 7 || partial != 0 { // a manifest, a configuration and a layer each, and the one that is shared
		t.Errorf("%d blobs, %d of them partial", blobs, partial)
	}
	load := func(name string) (*Image, error) {
		i, err := Load(Layout, s.Path, name, OpenAsUs, cache(t))
		if err == nil {
			t.Cleanup(func() { _ = i.Close() })
		}
		return i, err
	}
	i, err := load("b")
	if err != nil {
		t.Fatal(err)
	}
	want(t, i, map[string]string{"shared": noise(1, 1000), "b": "b"})
	// Another image by the same name takes its place.
	if err := s.Import(ctx, "a", "again", b.source(), silent); err != nil {
		t.Fatal(err)
	}
	if blobs, _ := s.blobs(t); blobs != 4 {
		t.Errorf("%d blobs", blobs)
	}
	if err := s.Remove("b"); err != nil {
		t.Fatal(err)
	}
	if i, err = load("a"); err != nil {
		t.Fatal(err)
	}
	want(t, i, map[string]string{"b": "b"})
	if err := errors.Join(s.Remove("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if blobs, partial := s.blobs(t); blobs+partial != 0 {
		t.Errorf("%d and %d are left", blobs, partial)
	}
	if err := (Store{t.TempDir() + "/none"}).Remove("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A broken download goes on where it was, in the same import or in the next.
func TestImportGoesOn(t *testing.T) {
	ctx := context.Background()
	l := layout(t, "plain", tarOf(t, file("a", noise(1, 100_000))))
	s := Store{t.TempDir()}
	source := &flaky{Source: l.source(), after: 40_000}
	if err := s.Import(ctx, "a", "", source, silent); err != nil {
		t.Fatal(err)
	}
	if got := source.asked[len(source.asked)-3:]; got[0] != 0 || got[1] != 40_000 || got[2] != 80_000 {
		t.Errorf("asked for %v", source.asked)
	}
	s = Store{t.TempDir()}
	interrupted, cancel := context.WithCancel(ctx)
	err := s.Import(interrupted, "a", "", &flaky{Source: l.source(), after: 40_000}, func(done, _ int64) {
		if done > 60_000 {
			cancel()
		}
	})
	if _, partial := s.blobs(t); err == nil || partial == 0 {
		t.Fatalf("%v, with %d partial files", err, partial)
	}
	if list, err := s.List(); len(list) > 0 || err != nil {
		t.Errorf("it is listed: %v, %v", list, err)
	}
	source = &flaky{Source: l.source(), after: 1 << 20}
	if err := s.Import(ctx, "a", "", source, silent); err != nil || len(source.asked) != 1 || source.asked[0] < 40_000 {
		t.Errorf("%v, asked for %v", err, source.asked)
	}
	// What another import does not want is given up.
	s = Store{t.TempDir()}
	interrupted, cancel = context.WithCancel(ctx)
	cancel()
	_ = s.Import(interrupted, "a", "", l.source(), silent)
	if err := s.Import(ctx, "b", "", layout(t, "plain", tarOf(t, file("b", "b"))).source(), silent); err != nil {
		t.Fatal(err)
	}
	if blobs, partial := s.blobs(t); blobs != 3 || partial != 0 {
		t.Errorf("%d blobs, %d of them partial", blobs, partial)
	}
}

func TestImportsThatFail(t *testing.T) {
	ctx := context.Background()
	good := tarOf(t, file("a", "a"))
	lies := layout(t, "plain", good)
	lies.write(blobName(digestOf(good)), append(bytes.Clone(good[:len(good)-1]), 'x'))
	short := layout(t, "plain", good)
	short.write(blobName(digestOf(good)), good[:100])
	huge := laid{t, t.TempDir()}
	huge.image([]Digest{digestOf(good)}, []any{map[string]any{"digest": digestOf(good), "size": int64(maxBytes)}})
	odd := laid{t, t.TempDir()}
	odd.image([]Digest{digestOf(good)}, []any{map[string]any{"digest": "sha256:../../x", "size": 1}})
	for want, l := range map[string]laid{"its digest is not": lies, "unexpected EOF": short, "no room": huge, "no sha256 or sha512 digest": odd} {
		s := Store{t.TempDir()}
		if err := s.Import(ctx, "a", "", l.source(), silent); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if list, err := s.List(); len(list) > 0 || err != nil {
			t.Errorf("%s: it is listed: %v, %v", want, list, err)
		}
	}
	for _, name := range []string{"", "host", "a/b", "../x", "a:b", ".x", "-x", strings.Repeat("x", 129), "a\n"} {
		if err := (Store{t.TempDir()}).Import(ctx, name, "", lies.source(), silent); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	s := Store{t.TempDir()}
	lock, err := os.Create(filepath.Join(s.Path, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := s.Import(ctx, "a", "", layout(t, "plain", good).source(), silent); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
}
