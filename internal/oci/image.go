package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"golang.org/x/sys/unix"
)

// Image is an image that was opened: a tree of files. It implements fuse.Files.
type Image struct {
	Environ []string // NAME=VALUE, as the image has them

	*builder
	permissions *permissions

	source files
	cache  *Cache
	layers []content
	bytes  uint64

	mu     sync.Mutex
	pieces [4]piece // decompressed lately
	next   int
}

// content is where the content of a layer's files is.
type content struct {
	layer   layer
	blob    *blob    // the layer, if it is not compressed, or
	inPlace bool     // read by its table of contents
	data    *os.File // else its copy,
	frames  []frame  // in these frames
}

// piece is a frame, decompressed.
type piece struct {
	layer, frame int
	data         []byte
}

// Load opens an image: of a kind, at a path, with a tag. It reads layers that the cache does not know as a whole. The Image
// owns what it opened, and uses the cache until it is closed.
func Load(kind, path, tag string, as Open, cache *Cache) (_ *Image, err error) {
	source, err := openFiles(kind, path, as)
	if err != nil {
		return nil, err
	}
	i := &Image{builder: newBuilder(), source: source, cache: cache}
	defer func() {
		if err != nil {
			_ = i.Close()
		}
	}()
	describe := describeOCI
	if kind == DockerArchive {
		describe = describeDocker
	}
	d, err := describe(source, tag)
	if err != nil {
		return nil, err
	}
	i.Environ = d.config.Config.Env
	indexes, err := i.look(d.layers)
	if err != nil {
		return nil, err
	}
	for n, x := range indexes {
		if err := i.apply(x); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", n+1, len(indexes), err)
		}
	}
	i.finish()
	for n := range i.inodes {
		if e := i.inodes[n].entry; e != nil && i.inodes[n].nlink > 0 {
			i.bytes += uint64(e.size)
		}
	}
	return i, nil
}

// look finds out what is in layers, in as many at once as there are processors.
func (i *Image) look(layers []layer) ([]*index, error) {
	left := newBudget(maxEntries, maxNames)
	i.layers = make([]content, len(layers))
	indexes, errs := make([]*index, len(layers)), make([]error, len(layers))
	var next atomic.Int64
	var failed atomic.Bool
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(layers)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := next.Add(1) - 1; n < int64(len(layers)) && !failed.Load(); n = next.Add(1) - 1 {
				indexes[n], errs[n] = i.lookInto(n, layers[n], left)
				if errs[n] != nil {
					failed.Store(true)
				}
			}
		}()
	}
	wg.Wait()
	for n, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", n+1, len(layers), err)
		}
	}
	return indexes, nil
}

// lookInto opens layer n, and finds out what is in it.
func (i *Image) lookInto(n int64, l layer, left *budget) (*index, error) {
	b, err := i.source.open(l.name)
	if err != nil {
		return nil, err
	}
	x, data, err := i.cache.layer(b, l, left)
	if err != nil {
		b.Close()
		return nil, err
	}
	if !x.inPlace {
		l.toc = nil
	}
	c := content{layer: l, blob: b, inPlace: x.inPlace, data: data, frames: x.frames}
	if data != nil {
		b.Close()
		c.blob = nil
	}
	i.layers[n] = c
	return x, nil
}

// Close closes the layers.
func (i *Image) Close() error {
	for _, c := range i.layers {
		if c.blob != nil {
			c.blob.Close()
		}
		if c.data != nil {
			_ = c.data.Close()
		}
	}
	return i.source.Close()
}

// Len returns the number of inodes.
func (i *Image) Len() int { return len(i.inodes) }

// Bytes returns how many bytes all files have.
func (i *Image) Bytes() uint64 { return i.bytes }

// Statfs is statfs(2) of where contents are.
func (i *Image) Statfs(st *unix.Statfs_t) error { return unix.Statfs(i.cache.path, st) }

// Stat fills in attributes.
func (i *Image) Stat(n uint32, st *unix.Stat_t) {
	f := &i.inodes[n]
	*st = unix.Stat_t{Mode: unix.S_IFDIR | 0o755, Nlink: uint64(f.nlink)}
	if e := f.entry; e != nil {
		st.Mode, st.Uid, st.Gid, st.Rdev, st.Size = e.mode, e.uid, e.gid, e.rdev, e.size
		st.Mtim = unix.Timespec{Sec: e.sec, Nsec: int64(e.nsec)}
		st.Atim, st.Ctim = st.Mtim, st.Mtim
		if e.kind == tar.TypeSymlink {
			st.Size = int64(len(e.link))
		}
	}
}

// Lookup finds a name in a directory.
func (i *Image) Lookup(dir uint32, name string) (n uint32, ok bool) {
	d := i.inodes[dir].dir
	if d == nil {
		return 0, false
	}
	e, ok := d.byName[name]
	return e.n, ok
}

// Child returns an entry of a directory, in the order of names.
func (i *Image) Child(dir uint32, number int) (name string, n uint32, ok bool) {
	d := i.inodes[dir].dir
	if d == nil || number < 0 || number >= len(d.order) {
		return "", 0, false
	}
	name = d.order[number]
	return name, d.byName[name].n, true
}

// Parent returns the directory that a directory is in.
func (i *Image) Parent(n uint32) uint32 {
	if d := i.inodes[n].dir; d != nil {
		return d.parent
	}
	return 0
}

// Readlink returns the target of a symbolic link.
func (i *Image) Readlink(n uint32) string {
	if e := i.inodes[n].entry; e != nil {
		return e.link
	}
	return ""
}

// Xattr returns an extended attribute.
func (i *Image) Xattr(n uint32, name string) (string, bool) {
	if e := i.inodes[n].entry; e != nil {
		for _, a := range e.xattrs {
			if a.name == name {
				return a.value, true
			}
		}
	}
	return "", false
}

// Xattrs returns the names of the extended attributes.
func (i *Image) Xattrs(n uint32) (names []string) {
	if e := i.inodes[n].entry; e != nil {
		for _, a := range e.xattrs {
			names = append(names, a.name)
		}
	}
	return names
}

// Open returns the content of a regular file, for reading; the caller owns it.
func (i *Image) Open(n uint32) (*os.File, error) {
	f := &i.inodes[n]
	e := f.entry
	if e == nil || e.kind != tar.TypeReg {
		return nil, unix.EINVAL
	}
	content, err := i.cache.content(e, func(w io.Writer) error {
		if e.size == 0 {
			return nil
		}
		if c := &i.layers[f.layer]; c.inPlace {
			return c.unpack(w, e)
		}
		r := tar.NewReader(i.reader(f.layer, e.at))
		h, err := r.Next()
		if err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		if h.Size != e.size {
			return fmt.Errorf("%w: its size is another", errDamaged)
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, len(zeros)))
		return err
	})
	if errors.Is(err, errDamaged) {
		i.cache.forget(&i.layers[f.layer].layer)
	}
	if err != nil {
		return nil, fmt.Errorf("%q of layer %d: %w", e.name, f.layer+1, err)
	}
	return content, nil
}

// unpack writes the content of a file of a layer that is read by its table of contents. Whether it is that, its digest says.
func (c *content) unpack(w io.Writer, e *entry) error {
	packed := io.NewSectionReader(c.blob, e.at, max(c.blob.size-e.at, 0))
	plain, _, err := decompress(packed, int(min(e.skip+e.size+4096, readSize)))
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	defer plain.Close()
	r := &damaged{plain}
	if _, err := io.Copy(io.Discard, io.LimitReader(r, e.skip)); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(r, e.size)}, make([]byte, len(zeros)))
	return err
}

// damaged reads something, and says of what cannot be read that it is damaged.
type damaged struct{ io.Reader }

func (d *damaged) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	return n, err
}

// reader reads the tar file of a layer from a place on.
func (i *Image) reader(layer int, at int64) io.Reader {
	c := &i.layers[layer]
	if c.blob != nil {
		return io.NewSectionReader(c.blob, at, max(c.blob.size-at, 0))
	}
	return &frameReader{i, layer, at, nil}
}

// frameReader reads frame by frame.
type frameReader struct {
	image *Image
	layer int
	at    int64 // where what comes after rest is
	rest  []byte
}

func (r *frameReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		frames := r.image.layers[r.layer].frames
		n := sort.Search(len(frames), func(n int) bool { return frames[n].plain > r.at }) - 1
		if n < 0 || n >= len(frames)-1 {
			return 0, io.EOF
		}
		data, err := r.image.piece(r.layer, n)
		if err != nil {
			return 0, err
		}
		r.rest = data[r.at-frames[n].plain:]
		r.at = frames[n+1].plain
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// piece decompresses a frame. Small files that are opened one after the other are often in the same.
func (i *Image) piece(layer, n int) ([]byte, error) {
	i.mu.Lock()
	for _, p := range i.pieces {
		if p.data != nil && p.layer == layer && p.frame == n {
			i.mu.Unlock()
			return p.data, nil
		}
	}
	i.mu.Unlock()
	c := &i.layers[layer]
	from, to := c.frames[n], c.frames[n+1]
	packed := make([]byte, to.packed-from.packed)
	if _, err := c.data.ReadAt(packed, from.packed); err != nil {
		return nil, fmt.Errorf("reading the copy of the layer: %w", err)
	}
	size, err := s2.DecodedLen(packed)
	if err == nil && int64(size) != to.plain-from.plain {
		err = errors.New("a frame has another length")
	}
	var data []byte
	if err == nil {
		data, err = s2.Decode(nil, packed)
	}
	if err != nil {
		return nil, fmt.Errorf("the copy of the layer: %w: %w", errDamaged, err)
	}
	i.mu.Lock()
	i.pieces[i.next] = piece{layer, n, data}
	i.next = (i.next + 1) % len(i.pieces)
	i.mu.Unlock()
	return data, nil
}

// ReadFile reads a regular file of at most limit bytes, by its path in the image. Links are followed in the image.
func (i *Image) ReadFile(path string, limit int64) ([]byte, error) {
	n, ok := i.resolve(path)
	if !ok {
		return nil, &os.PathError{Op: "open in the image", Path: path, Err: fs.ErrNotExist}
	}
	e := i.inodes[n].entry
	switch {
	case !i.Permits(n, unix.R_OK):
		return nil, &os.PathError{Op: "open in the image", Path: path, Err: fs.ErrPermission}
	case e == nil || e.kind != tar.TypeReg:
		return nil, &os.PathError{Op: "read in the image", Path: path, Err: unix.EINVAL}
	case e.size > limit:
		return nil, &os.PathError{Op: "read in the image", Path: path, Err: unix.EFBIG}
	}
	f, err := i.Open(n)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

// Exists reports whether a path leads to something in the image.
func (i *Image) Exists(path string) bool {
	n, ok := i.resolve(path)
	return ok && i.Permits(n, 0)
}
