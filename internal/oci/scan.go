package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// frameSize is how much of a tar file is in a frame of its copy, in bytes.
const frameSize = 1 << 20

// counter passes on what is read, and counts it.
type counter struct {
	io.Reader
	n   int64
	max int64 // more is an error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.n += int64(n); c.n > c.max {
		return 0, fmt.Errorf("it unpacks to more than %d bytes", c.max) // who gets what there is as well may not look at the error
	}
	return n, err
}

// into digests all that there is.
func into(sum hash.Hash) func(io.Reader) error {
	return func(r io.Reader) error {
		_, err := io.Copy(sum, r)
		return err
	}
}

// readSize is how much of a layer is read at once, in bytes.
const readSize = 256 << 10

// decompress returns what a layer has in it, told by how it begins, and whether it was compressed. It reads size bytes at once.
func decompress(r io.Reader, size int) (plain io.ReadCloser, packed bool, err error) {
	in := bufio.NewReaderSize(r, size)
	magic, _ := in.Peek(6) // shorter is a matter for the tar reader
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		return z, true, err
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, true, err
		}
		return z.IOReadCloser(), true, nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte("\xfd7zXZ")):
		return nil, true, errors.New("it is compressed with something else than gzip or zstd")
	}
	return io.NopCloser(in), false, nil
}

// framer writes a copy of what it is given, each frame compressed by itself, with S2: several times as fast as zstd, and half as long again.
type framer struct {
	w      io.Writer
	buf    []byte
	packed []byte
	frames []frame
	next   frame
}

func newFramer(w io.Writer) *framer {
	return &framer{w: w, buf: make([]byte, 0, frameSize), packed: make([]byte, s2.MaxEncodedLen(frameSize))}
}

// copy copies all that there is.
func (f *framer) copy(r io.Reader) error {
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.flush()
}

func (f *framer) Write(p []byte) (int, error) {
	size := len(p)
	for len(p) > 0 {
		if len(f.buf) == 0 && len(p) >= frameSize { // as tee has it
			if err := f.pack(p[:frameSize]); err != nil {
				return 0, err
			}
			p = p[frameSize:]
			continue
		}
		n := min(len(p), frameSize-len(f.buf))
		f.buf, p = append(f.buf, p[:n]...), p[n:]
		if len(f.buf) == frameSize {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return size, nil
}

func (f *framer) flush() error {
	if len(f.buf) == 0 {
		return nil
	}
	err := f.pack(f.buf)
	f.buf = f.buf[:0]
	return err
}

// pack writes a frame.
func (f *framer) pack(p []byte) error {
	packed := s2.Encode(f.packed, p)
	f.frames = append(f.frames, f.next)
	f.next.plain += int64(len(p))
	f.next.packed += int64(len(packed))
	_, err := f.w.Write(packed)
	return err
}

// budget is what the layers of an image may still have, together.
type budget struct{ entries, names atomic.Int64 }

func newBudget(entries, names int64) *budget {
	b := &budget{}
	b.entries.Store(entries)
	b.names.Store(names)
	return b
}

// take takes what an entry needs.
func (b *budget) take(e *entry) error {
	if entries, names := b.entries.Add(-1), b.names.Add(int64(-e.names())); entries < 0 || names < 0 {
		return fmt.Errorf("with it there are more than %d entries, or more than %d bytes of names", maxEntries, maxNames)
	}
	return nil
}

// give gives back what the entries of an index have taken.
func (b *budget) give(x *index) {
	for n := range x.entries {
		b.entries.Add(1)
		b.names.Add(int64(x.entries[n].names()))
	}
}

// unpackedLimit is how long what is in a layer may be, which has size bytes itself.
func unpackedLimit(size int64) int64 { return min(maxBytes, size*maxRatio+ratioSlack) }

// scan reads a layer and finds out what is in it. What is compressed is copied to data, in frames. All of it is read, and everything that is
// to be made of it, at once: nothing takes longer than what takes longest, which is to decompress.
func scan(b *blob, l layer, left *budget, data io.Writer) (*index, error) {
	x := &index{}
	tarred := l.diffID.sum()
	stored := tarred // if that is the same
	if l.blob != "" {
		stored = l.blob.sum()
	}
	err := tee(b.reader(), into(stored), func(r io.Reader) error {
		plain, packed, err := decompress(r, readSize)
		if err != nil {
			return err
		}
		defer plain.Close()
		in := &counter{Reader: plain, max: unpackedLimit(b.size)}
		read := func(r io.Reader) error { return x.read(r, left) }
		if !packed && (l.blob == "" || l.blob.algorithm() == l.diffID.algorithm()) {
			tarred = stored
			return read(in)
		}
		if !packed {
			return tee(in, into(tarred), read)
		}
		f := newFramer(data)
		err = tee(in, into(tarred), f.copy, read)
		x.frames = append(f.frames, f.next)
		return err
	})
	if err != nil {
		return nil, err
	}
	if l.blob != "" {
		if err := l.blob.compare(stored); err != nil {
			return nil, fmt.Errorf("its digest %w", err)
		}
	}
	if err := l.diffID.compare(tarred); err != nil {
		return nil, fmt.Errorf("the digest of the tar file in it %w", err)
	}
	return x, nil
}

const (
	blockSize   = 512             // of a tar file
	xattrRecord = "SCHILY.xattr." // begins the names of PAX records of attributes
)

// read reads a tar file. What comes after the end of the archive is not read.
func (x *index) read(r io.Reader, left *budget) error {
	in := &counter{Reader: r, max: math.MaxInt64}
	total := int64(0)
	buf := make([]byte, 256<<10)
	for r := tar.NewReader(in); ; {
		at := (in.n + blockSize - 1) / blockSize * blockSize
		h, err := r.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d entries: %w", len(x.entries), err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, err := newEntry(h, at)
		if err != nil {
			return err
		}
		if err := left.take(&e); err != nil {
			return err
		}
		if total += e.size; e.size > maxBytes || total > maxBytes {
			return fmt.Errorf("its files have more than %d bytes, with %q", int64(maxBytes), e.name)
		}
		if e.size > 0 {
			sum := sha256.New()
			if n, err := io.CopyBuffer(sum, r, buf); err != nil || n != e.size {
				return fmt.Errorf("%q: %d bytes of %d: %w", e.name, n, e.size, errors.Join(err, io.ErrUnexpectedEOF))
			}
			sum.Sum(e.digest[:0])
		}
		// What has content that does not count: the next header comes after it.
		if _, err := io.CopyBuffer(io.Discard, r, buf); err != nil {
			return fmt.Errorf("%q: %w", e.name, err)
		}
		x.entries = append(x.entries, e)
	}
}

// newEntry takes of a header what matters.
func newEntry(h *tar.Header, at int64) (entry, error) {
	e := entry{
		name: h.Name, kind: h.Typeflag, mode: uint32(h.Mode) & 0o7777, uid: uint32(h.Uid), gid: uint32(h.Gid), at: at,
		sec: h.ModTime.Unix(), nsec: int32(h.ModTime.Nanosecond()),
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return e, fmt.Errorf("%q has an owner that cannot be, %d:%d", h.Name, h.Uid, h.Gid)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		e.kind, e.size, e.mode = tar.TypeReg, h.Size, e.mode|unix.S_IFREG
		if strings.HasSuffix(h.Name, "/") { // of old, a directory
			e.kind, e.size, e.mode = tar.TypeDir, 0, e.mode&0o7777|unix.S_IFDIR
		}
	case tar.TypeDir:
		e.mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		e.link, e.mode = h.Linkname, unix.S_IFLNK|0o777
		if e.link == "" || len(e.link) >= unix.PathMax || strings.IndexByte(e.link, 0) >= 0 {
			return e, fmt.Errorf("the symbolic link %q leads nowhere", h.Name)
		}
	case tar.TypeLink:
		e.link = h.Linkname
	case tar.TypeChar:
		e.mode |= unix.S_IFCHR
	case tar.TypeBlock:
		e.mode |= unix.S_IFBLK
	case tar.TypeFifo:
		e.mode |= unix.S_IFIFO
	default:
		return e, fmt.Errorf("%q is of a type that is not known, %q", h.Name, h.Typeflag)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return e, fmt.Errorf("%q is a device that cannot be, %d:%d", h.Name, h.Devmajor, h.Devminor)
		}
		e.rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		// Labels are this host's affair, what is trusted only the host's root can say, and overlayfs has its own bookkeeping.
		if !ok || name == "security.selinux" || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if len(name) > unix.NAME_MAX || len(value) > 64<<10 || strings.IndexByte(name, 0) >= 0 || !strings.Contains(name, ".") {
			return e, fmt.Errorf("%q has an attribute that cannot be, %q", h.Name, name)
		}
		e.xattrs = append(e.xattrs, xattr{name, value})
	}
	return e, nil
}
