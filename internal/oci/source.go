package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens a file by path, for reading, with the rights of whom the image is for.
type Open func(path string) (*os.File, error)

// files are the files that an image consists of: in a directory or in an archive.
type files interface {
	// open opens one. Errors: fs.ErrNotExist.
	open(name string) (*blob, error)
	Close() error
}

// openFiles opens what an image of a kind consists of.
func openFiles(kind, path string, as Open) (files, error) {
	if kind == Layout {
		return directory{path, as}, nil
	}
	f, err := as(path)
	if err != nil {
		return nil, err
	}
	return openArchive(f)
}

// blob is a file of an image.
type blob struct {
	io.ReaderAt
	size   int64
	closer io.Closer // nil: it belongs to an archive
}

func (b *blob) Close() {
	if b.closer != nil {
		_ = b.closer.Close()
	}
}

func (b *blob) reader() io.Reader { return io.NewSectionReader(b, 0, b.size) }

// document reads a whole file that has a JSON text in it.
func (b *blob) document() ([]byte, error) {
	if b.size > maxDocument {
		return nil, fmt.Errorf("it has %d bytes, more than %d", b.size, maxDocument)
	}
	data := make([]byte, b.size)
	_, err := io.ReadFull(b.reader(), data)
	return data, err
}

// directory is a layout directory.
type directory struct {
	path string
	as   Open
}

func (d directory) open(name string) (*blob, error) {
	f, err := d.as(path.Join(d.path, name))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file", name))
	}
	return &blob{f, info.Size(), f}, nil
}

func (d directory) Close() error { return nil }

// archive is a tar file that is not compressed.
type archive struct {
	file    *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	link         string // instead
}

// openArchive finds out what is in an archive. It takes over the file.
func openArchive(f *os.File) (*archive, error) {
	a := &archive{file: f, members: map[string]member{}}
	names := 0
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("it is no tar file, or is damaged: %w", err)
		}
		name := path.Clean("/" + h.Name)
		names += len(name) + len(h.Linkname)
		if len(a.members) > maxEntries/16 || names > maxNames/16 {
			_ = f.Close()
			return nil, errors.New("it has too many members")
		}
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				_ = f.Close()
				return nil, err
			}
			a.members[name] = member{offset: at, size: h.Size}
		case tar.TypeSymlink:
			// docker save has these for layers that are in the archive twice.
			a.members[name] = member{link: path.Clean(path.Join(path.Dir(name), h.Linkname))}
		case tar.TypeLink:
			a.members[name] = member{link: path.Clean("/" + h.Linkname)}
		}
	}
}

func (a *archive) open(name string) (*blob, error) {
	at := path.Clean("/" + name)
	for range 8 {
		m, ok := a.members[at]
		if !ok {
			break
		}
		if m.link == "" {
			return &blob{ReaderAt: io.NewSectionReader(a.file, m.offset, m.size), size: m.size}, nil
		}
		at = m.link
	}
	return nil, fmt.Errorf("%s: %w in the archive", strings.TrimPrefix(name, "/"), fs.ErrNotExist)
}

func (a *archive) Close() error { return a.file.Close() }

// OpenAsUs opens a file with the rights of this process.
func OpenAsUs(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}
