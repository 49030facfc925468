package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// SystemStore is where root keeps imported images, which everybody has by name.
const SystemStore = "/var/lib/cntr/images"

// Store keeps images that were imported: a layout directory, with all images in one index, so that they share layers. Whoever
// is killed leaves it as it was, and what was fetched of a blob, in partial/, for the next to go on with.
//
// index.json is replaced as a whole, and after all that it refers to is on the disk. What it does not refer to is removed by the next import or
// removal. The zero value is no store.
type Store struct{ Path string }

// UserStore returns the store of whom this process is of.
func UserStore() (Store, error) {
	if os.Geteuid() == 0 {
		return Store{SystemStore}, nil
	}
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) {
		home, err := os.UserHomeDir()
		if err != nil || !filepath.IsAbs(home) {
			return Store{}, errors.New("there is no home directory to keep images in")
		}
		data = filepath.Join(home, ".local/share")
	}
	return Store{filepath.Join(data, "cntr/images")}, nil
}

// Imported is an image of a store.
type Imported struct {
	Name   string
	Source string // what it was imported from
}

// sourceName is the annotation that tells what an image was imported from.
const sourceName = "org.cntr.image.source"

// nameLimit is how long the name of an imported image may be, in bytes: what registries allow for a tag.
const nameLimit = 128

// CheckName checks a name for an imported image: one that cannot be taken for a path or a machine.
func CheckName(name string) error {
	// No regular expression: making one is a tenth of what the start of a program costs that rarely needs it.
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || len(name) > nameLimit || !strings.Contains(first, name[:1]) || strings.Trim(name, first+"._-") != "" || name == "host" {
		return fmt.Errorf("%q cannot be the name of an image: letters, digits, and . _ - after the first", name)
	}
	return nil
}

// layoutIndex is an index.json as it is written.
type layoutIndex struct {
	SchemaVersion int           `json:"schemaVersion"`
	MediaType     string        `json:"mediaType"`
	Manifests     []*descriptor `json:"manifests"`
}

// List returns the images, in the order of their names. A store that does not exist has none.
func (s Store) List() (list []Imported, err error) {
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	for _, d := range index.Manifests {
		list = append(list, Imported{d.Annotations[refName], d.Annotations[sourceName]})
	}
	return list, nil
}

// Find returns the image that f says is it.
func (s Store) Find(f func(Imported) bool) (Imported, bool, error) {
	list, err := s.List()
	if n := slices.IndexFunc(list, f); n >= 0 {
		return list[n], true, err
	}
	return Imported{}, false, err
}

func (s Store) index() (*layoutIndex, error) {
	index := &layoutIndex{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json"}
	data, err := os.ReadFile(filepath.Join(s.Path, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err == nil {
		err = json.Unmarshal(data, index)
	}
	if err != nil {
		return nil, fmt.Errorf("the store of images: %w", err)
	}
	return index, nil
}

// blobDirs are where the blobs of a store are.
var blobDirs = []string{"blobs/sha256", "blobs/sha512"}

// ErrBusy is the error of who would change a store while another process does.
var ErrBusy = errors.New("another import or removal is at work")

// change runs f with the store's index, and writes that down if f is content.
func (s Store) change(f func(*layoutIndex) error) error {
	mode := fs.FileMode(0o700)
	if s.Path == SystemStore {
		mode = 0o755
	}
	for _, dir := range slices.Concat(blobDirs, []string{"partial"}) {
		if err := os.MkdirAll(filepath.Join(s.Path, dir), mode); err != nil {
			return err
		}
	}
	lock, err := os.OpenFile(filepath.Join(s.Path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return ErrBusy
	}
	index, err := s.index()
	if err != nil {
		return err
	}
	if err := f(index); err != nil {
		return err
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := s.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := s.write("index.json", data); err != nil {
		return err
	}
	return s.sweep(index)
}

// write puts a file on the disk, in place of what has its name.
func (s Store) write(name string, data []byte) error {
	f, err := os.OpenFile(filepath.Join(s.Path, "partial/new"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return s.place(f, name)
}

// place gives a file of partial/ its name, once it is on the disk.
func (s Store) place(f *os.File, name string) error {
	to := filepath.Join(s.Path, name)
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// sweep removes what no image of an index, nor what is wanted besides, refers to.
func (s Store) sweep(index *layoutIndex, wanted ...descriptor) error {
	keep := map[string]bool{}
	for _, d := range wanted {
		keep[d.Digest.hex()] = true
	}
	for _, d := range index.Manifests {
		keep[d.Digest.hex()] = true
		data, err := verified(directory{s.Path, OpenAsUs}, d.Digest)
		if err != nil {
			return fmt.Errorf("the image %q in the store: %w", d.Annotations[refName], err)
		}
		var m manifest
		if err := json.Unmarshal(data, &m); err != nil || m.Config == nil {
			return fmt.Errorf("the image %q in the store has no manifest: %w", d.Annotations[refName], err)
		}
		for _, b := range append(m.Layers, *m.Config) {
			keep[b.Digest.hex()] = true
		}
	}
	for _, dir := range slices.Concat(blobDirs, []string{"partial"}) {
		entries, err := os.ReadDir(filepath.Join(s.Path, dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !keep[e.Name()] {
				if err := os.Remove(filepath.Join(s.Path, dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Remove removes an image, and what only it has needed. fs.ErrNotExist: there is none.
func (s Store) Remove(name string) error {
	// Else a store would be made in order to find nothing in it.
	if _, found, err := s.Find(func(i Imported) bool { return i.Name == name }); err != nil || !found {
		return errors.Join(err, fs.ErrNotExist)
	}
	return s.change(func(index *layoutIndex) error {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d *descriptor) bool { return d.Annotations[refName] == name })
		return nil
	})
}

// Source is an image somewhere else.
type Source interface {
	// Manifest returns the image manifest for this machine. It is trusted as far as the source is.
	Manifest(ctx context.Context) ([]byte, error)
	// Blob reads a blob from a place on. Its digest is checked by who reads it.
	Blob(ctx context.Context, d Digest, from int64) (io.ReadCloser, error)
	Close() error
}
