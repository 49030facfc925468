package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Import brings an image here under a name, in place of one that has it, and notes what it was imported from. What is here already, also of an
// import that was broken off, is not fetched again. progress is told how many bytes of how many are here.
func (s Store) Import(ctx context.Context, name, from string, source Source, progress func(done, total int64)) error {
	if err := CheckName(name); err != nil {
		return err
	}
	text, err := source.Manifest(ctx)
	if err != nil {
		return err
	}
	blobs, err := parseManifest(text)
	if err != nil {
		return err
	}
	entry := &descriptor{
		MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digestOf(text), Size: int64(len(text)),
		Annotations: map[string]string{refName: name, sourceName: from},
	}
	return s.change(func(index *layoutIndex) error {
		if err := s.sweep(index, append(blobs, *entry)...); err != nil {
			return err
		}
		if err := s.room(blobs); err != nil {
			return err
		}
		total, done := int64(0), int64(0)
		for _, b := range blobs {
			total += b.Size
		}
		for n, b := range blobs {
			f := fetch{s, source, b, func(n int64) { done += n; progress(done, total) }}
			if err := f.run(ctx); err != nil {
				return fmt.Errorf("%d of %d: %w", n+1, len(blobs), err)
			}
		}
		if err := s.write(blobName(entry.Digest), text); err != nil {
			return err
		}
		index.Manifests = append(slices.DeleteFunc(index.Manifests, func(d *descriptor) bool { return d.Annotations[refName] == name }), entry)
		slices.SortFunc(index.Manifests, func(a, b *descriptor) int { return strings.Compare(a.Annotations[refName], b.Annotations[refName]) })
		return nil
	})
}

// parseManifest returns what an image manifest refers to, each once.
func parseManifest(text []byte) (blobs []descriptor, err error) {
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil || m.Config == nil {
		return nil, fmt.Errorf("what is there is no image: %w", errors.Join(err, errors.New("it has no manifest")))
	}
	if len(m.Layers) > maxLayers || m.Config.Size > maxDocument {
		return nil, fmt.Errorf("it has %d layers, more than %d, or too long a configuration", len(m.Layers), maxLayers)
	}
	for _, d := range append([]descriptor{*m.Config}, m.Layers...) {
		if err := d.Digest.check(); err != nil {
			return nil, err
		}
		if d.Size < 0 || d.Size > maxBytes {
			return nil, fmt.Errorf("%s is to have %d bytes", d.Digest, d.Size)
		}
		if !slices.ContainsFunc(blobs, func(b descriptor) bool { return b.Digest == d.Digest }) {
			blobs = append(blobs, d)
		}
	}
	return blobs, nil
}

// room checks that there is space: the file system keeps a twentieth free, and the store has at most half of it.
func (s Store) room(blobs []descriptor) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.Path, &st); err != nil {
		return err
	}
	need, have := int64(0), int64(0)
	for _, b := range blobs {
		if info, err := os.Stat(filepath.Join(s.Path, blobName(b.Digest))); err != nil || info.Size() != b.Size {
			need += b.Size
		}
	}
	for _, dir := range blobDirs {
		entries, err := os.ReadDir(filepath.Join(s.Path, dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				have += info.Size()
			}
		}
	}
	free, all := int64(st.Bavail)*st.Frsize, int64(st.Blocks)*st.Frsize
	if need > 0 && (need > free-all/20 || have+need > all/2) {
		return fmt.Errorf("it needs %d MiB, for which there is no room in %s: %w", need>>20, s.Path, unix.ENOSPC)
	}
	return nil
}

// fetch is one blob that is to be here.
type fetch struct {
	store  Store
	source Source
	descriptor
	progress func(n int64)
}

// tries says how often a source is asked again that breaks off before it has sent anything.
const tries = 4

func (b *fetch) run(ctx context.Context) error {
	name := blobName(b.Digest)
	if info, err := os.Stat(filepath.Join(b.store.Path, name)); err == nil && info.Size() == b.Size {
		b.progress(b.Size)
		return nil
	}
	f, err := os.OpenFile(filepath.Join(b.store.Path, "partial", b.Digest.hex()), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := b.Digest.sum()
	at, err := io.Copy(sum, io.LimitReader(f, b.Size))
	if err != nil {
		return err
	}
	b.progress(at)
	for failed := 0; at < b.Size; {
		n, err := b.more(ctx, io.MultiWriter(f, sum), at)
		if at += n; n > 0 {
			failed = 0
		}
		if at == b.Size {
			break
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if failed++; failed == tries || ctx.Err() != nil || errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("after %d of %d bytes of %s: %w", at, b.Size, b.Digest, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(failed) * 300 * time.Millisecond):
		}
	}
	if err := b.Digest.compare(sum); err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("its digest %w", err)
	}
	return b.store.place(f, name)
}

// more fetches from a place on.
func (b *fetch) more(ctx context.Context, w io.Writer, at int64) (n int64, err error) {
	r, err := b.source.Blob(ctx, b.Digest, at)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(w, io.LimitReader(&watched{r, b.progress}, b.Size-at))
}

// watched tells of what is read.
type watched struct {
	io.Reader
	progress func(n int64)
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.progress(int64(n))
	return n, err
}
