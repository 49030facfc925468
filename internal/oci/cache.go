package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CacheDir is where caches are, those of each user in a directory with the uid for its name.
const CacheDir = "/var/cache/cntr"

// Cache keeps what it took time to find out, for one user's sessions, at one place:
//
//	layers/KEY.index     what is in a layer; KEY is made of its digests, and that of its table of contents if that is what is known
//	layers/KEY.data      the copy of a compressed layer
//	files-BOOT/DIGEST    contents of files that were opened; BOOT is the boot id
//
// All of it can be removed at any time. Whatever is there is whole: it is written to a file without a name (O_TMPFILE),
// which is given one at the end. What was being written when a process was killed is gone with it. Indexes and copies are
// on the disk before they get their names. Contents of files are not, so they count until the next boot only.
type Cache struct {
	path  string
	files string // name of the directory of contents
	limit int64  // bytes; 0: see bound

	mu    sync.Mutex
	added int64 // bytes since Prune
}

// cacheLimit bounds a user's cache, in bytes; the other bound is an eighth of the file system.
const cacheLimit = 8 << 30

// OpenCache makes a cache at a path, a directory that only root may have access to.
func OpenCache(path string) (*Cache, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	c := &Cache{path: path, files: "files-" + strings.TrimSpace(string(boot))}
	if err := c.inside(c.make); err != nil {
		return nil, err
	}
	// Sessions count apart. They begin anywhere, so that many that add little make room as often as one that adds much.
	c.added = rand.Int64N(c.bound()/roomShare + 1)
	if len(c.stale()) > 0 {
		go c.Prune()
	}
	return c, nil
}

// roomShare says how often room is made: when that share of the bound was added.
const roomShare = 16

// UserCache opens the cache of a user.
func UserCache(uid uint32) (*Cache, error) {
	if err := os.MkdirAll(CacheDir, 0o755); err != nil {
		return nil, err
	}
	return OpenCache(filepath.Join(CacheDir, strconv.FormatUint(uint64(uid), 10)))
}

// make makes the directories that are missing: they may be removed at any time.
func (c *Cache) make() error {
	for _, dir := range []string{"layers", c.files} {
		if err := os.MkdirAll(filepath.Join(c.path, dir), 0o700); err != nil {
			return fmt.Errorf("making the cache: %w", err)
		}
	}
	return nil
}

// inside does something in the cache's directories, again if somebody has removed them meanwhile.
func (c *Cache) inside(f func() error) (err error) {
	for range 5 {
		if err = f(); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err := c.make(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// key names a layer as it is stored.
func (l *layer) key() string {
	text := string(l.diffID) + "\n" + string(l.blob)
	if l.toc != nil {
		text += "\n" + string(l.toc.digest)
	}
	sum := sha256.Sum256([]byte(text))
	return "layers/" + hex.EncodeToString(sum[:])
}

// lock keeps others from looking into the same layer at the same time, until unlock. One file has a lock for each:
// that of a byte at the place that the layer's digest says (F_OFD_SETLKW, fcntl(2)).
func (c *Cache) lock(l *layer) (unlock func(), err error) {
	var f *os.File
	if err := c.inside(func() (err error) {
		f, err = os.OpenFile(filepath.Join(c.path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		return err
	}); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(l.key()))
	at := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(binary.BigEndian.Uint64(sum[:]) >> 2), Len: 1}
	for {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &at)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// nameless makes a file that is gone if it is not given a name.
func (c *Cache) nameless(dir string) (*os.File, error) {
	fd := -1
	err := c.inside(func() (err error) {
		fd, err = unix.Open(filepath.Join(c.path, dir), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making a file in the cache: %w", err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(c.path, dir)), nil
}

// name gives a file a name, in place of what has it.
func (c *Cache) name(f *os.File, name string) error {
	path := filepath.Join(c.path, name)
	return c.inside(func() error {
		for range 3 {
			err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
			if err != unix.EEXIST {
				return err
			}
			_ = os.Remove(path)
		}
		return nil // others have the same
	})
}

// count notes that a file was added, and makes room now and then.
func (c *Cache) count(f *os.File) {
	c.mu.Lock()
	if info, err := f.Stat(); err == nil {
		c.added += space(info)
	}
	due := c.added > c.bound()/roomShare
	if due {
		c.added = 0
	}
	c.mu.Unlock()
	if due {
		c.Prune()
	}
}

func (c *Cache) bound() int64 {
	if c.limit != 0 {
		return c.limit
	}
	limit := int64(cacheLimit)
	var st unix.Statfs_t
	if unix.Statfs(c.path, &st) == nil {
		limit = min(limit, int64(st.Blocks/8)*st.Frsize)
	}
	return limit
}

// space is what a file takes, in bytes: its blocks, for it may have holes, and what a name and an inode cost.
func space(info fs.FileInfo) int64 {
	const inode = 512
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks*512 + inode
	}
	return info.Size() + inode
}

// stale returns the directories of contents of earlier boots.
func (c *Cache) stale() []string {
	dirs, _ := filepath.Glob(filepath.Join(c.path, "files-*")) // the pattern is one
	return slices.DeleteFunc(dirs, func(dir string) bool { return filepath.Base(dir) == c.files })
}

// Prune removes what is of an earlier boot and, if there is too much, what was not used for longest.
func (c *Cache) Prune() {
	type file struct {
		path string
		size int64
		used time.Time
	}
	var list []file
	total := int64(0)
	for _, dir := range c.stale() {
		_ = os.RemoveAll(dir) // the next one tries again
	}
	for _, dir := range []string{"layers", c.files} {
		entries, _ := os.ReadDir(filepath.Join(c.path, dir)) // none, if somebody has removed it
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				list = append(list, file{filepath.Join(c.path, dir, e.Name()), space(info), info.ModTime()})
				total += space(info)
			}
		}
	}
	limit := c.bound()
	if total <= limit {
		return
	}
	slices.SortFunc(list, func(a, b file) int { return a.used.Compare(b.used) })
	for _, f := range list {
		if total <= limit-limit/4 {
			return
		}
		if err := os.Remove(f.path); err == nil || errors.Is(err, fs.ErrNotExist) { // others make room, too
			total -= f.size
		}
	}
}

// used notes that a file was used now.
func used(f *os.File) {
	now := unix.NsecToTimeval(time.Now().UnixNano())
	_ = unix.Futimes(int(f.Fd()), []unix.Timeval{now, now}) // it is removed sooner then
}

// load returns a layer's index and the file that its content is in, if the cache has them: data is nil if that is the layer
// itself. fs.ErrNotExist: it has not, or what it has is of no use.
func (c *Cache) load(l *layer, left *budget) (x *index, data *os.File, err error) {
	f, err := os.Open(filepath.Join(c.path, l.key()+".index"))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	var buf bytes.Buffer
	if info, err := f.Stat(); err == nil {
		buf.Grow(int(info.Size()) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(f); err != nil {
		return nil, nil, err
	}
	if x, err = decodeIndex(buf.Bytes()); err != nil {
		return nil, nil, fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	}
	used(f)
	if len(x.frames) > 0 {
		if data, err = c.copied(l, x); err != nil {
			return nil, nil, err
		}
	}
	for n := range x.entries {
		if err := left.take(&x.entries[n]); err != nil {
			if data != nil {
				_ = data.Close()
			}
			return nil, nil, err
		}
	}
	return x, data, nil
}

// copied opens the copy of a layer. fs.ErrNotExist as above.
func (c *Cache) copied(l *layer, x *index) (*os.File, error) {
	data, err := os.Open(filepath.Join(c.path, l.key()+".data"))
	if err != nil {
		return nil, err
	}
	info, err := data.Stat()
	if err != nil || info.Size() != x.frames[len(x.frames)-1].packed {
		_ = data.Close()
		return nil, fs.ErrNotExist
	}
	used(data)
	return data, nil
}

// layer returns a layer's index and content, and looks into the layer if it has to: into its table of contents, or else all of it.
func (c *Cache) layer(b *blob, l layer, left *budget) (x *index, data *os.File, err error) {
	if l.toc != nil && l.size == b.size {
		x, data, err = c.look(&l, left, func() (*index, *os.File, error) {
			x, err := l.toc.read(b, left)
			return x, nil, err
		})
		if !errors.Is(err, errTOC) {
			return x, data, err
		}
	}
	l.toc = nil
	return c.look(&l, left, func() (*index, *os.File, error) {
		data, err := c.nameless("layers")
		if err != nil {
			return nil, nil, err
		}
		x, err := scan(b, l, left, &limited{f: data, max: c.bound()})
		if err != nil || len(x.frames) == 0 {
			_ = data.Close()
			data = nil
		}
		return x, data, err
	})
}

// look returns a layer's index and content; into looks into the layer, if the cache does not know them.
func (c *Cache) look(l *layer, left *budget, into func() (*index, *os.File, error)) (x *index, data *os.File, err error) {
	if x, data, err = c.load(l, left); !errors.Is(err, fs.ErrNotExist) {
		return x, data, err
	}
	unlock, err := c.lock(l)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if x, data, err = c.load(l, left); !errors.Is(err, fs.ErrNotExist) {
		return x, data, err // somebody else has just done it
	}
	if x, data, err = into(); err != nil {
		return nil, nil, err
	}
	if err := c.keep(l, x, data); err != nil {
		if data != nil {
			_ = data.Close()
		}
		return nil, nil, fmt.Errorf("keeping what is in the layer: %w", err)
	}
	return x, data, nil
}

// limited is a file that may not become longer than the cache: that would keep nothing else, and take all space meanwhile.
type limited struct {
	f        *os.File
	max      int64
	n, begun int64 // bytes that were written, and those of which the disk was told
}

// told is of how many bytes the disk is told at once. Else it is told at the end, when somebody waits for it.
const told = 16 << 20

func (l *limited) Write(p []byte) (int, error) {
	if l.n+int64(len(p)) > l.max {
		return 0, fmt.Errorf("a copy of it does not fit into %s", filepath.Dir(l.f.Name()))
	}
	n, err := l.f.Write(p)
	if l.n += int64(n); l.n-l.begun >= told {
		_ = unix.SyncFileRange(int(l.f.Fd()), l.begun, l.n-l.begun, unix.SYNC_FILE_RANGE_WRITE) // fsync is what counts
		l.begun = l.n
	}
	return n, err
}

// forget removes what is known of a layer, whose copy was found to be damaged. The next session looks into it again.
func (c *Cache) forget(l *layer) {
	for _, suffix := range []string{".index", ".data"} {
		_ = os.Remove(filepath.Join(c.path, l.key()+suffix)) // else it is found damaged again
	}
}

// keep writes down what was found out of a layer.
func (c *Cache) keep(l *layer, x *index, data *os.File) error {
	if data != nil {
		if err := data.Sync(); err != nil {
			return err
		}
		if err := c.name(data, l.key()+".data"); err != nil {
			return err
		}
		c.count(data)
	}
	f, err := c.nameless("layers")
	if err != nil {
		return err
	}
	defer f.Close()
	text := x.encode()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	c.count(f)
	return c.name(f, l.key()+".index")
}

// content returns a file's content; write writes it, with what it does not write being zero, if the cache does not have it.
func (c *Cache) content(e *entry, write func(io.Writer) error) (*os.File, error) {
	digest := e.digest
	if e.size == 0 {
		digest = sha256.Sum256(nil)
	}
	name := c.files + "/" + hex.EncodeToString(digest[:])
	if f, err := os.Open(filepath.Join(c.path, name)); err == nil {
		if info, err := f.Stat(); err == nil && info.Size() == e.size {
			used(f)
			return f, nil
		}
		_ = f.Close()
	}
	f, err := c.nameless(c.files)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := &sparse{f: f, sum: sha256.New()}
	if err := write(w); err != nil {
		return nil, err
	}
	if w.n != e.size || !bytes.Equal(w.sum.Sum(nil), digest[:]) {
		return nil, fmt.Errorf("%w: it is not what its digest says", errDamaged)
	}
	if err := f.Truncate(e.size); err != nil {
		return nil, err
	}
	c.count(f)
	if err := c.name(f, name); err != nil {
		return nil, err
	}
	// For reading only: a descriptor for writing would keep the file from being executed.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// errDamaged is about the copy of a layer, or a layer that somebody has changed.
var errDamaged = errors.New("it is damaged")

// sparse writes a file with holes where there are only zeros.
type sparse struct {
	f   *os.File
	n   int64
	sum hash.Hash
}

var zeros [32 << 10]byte

func (s *sparse) Write(p []byte) (int, error) {
	s.sum.Write(p)
	if len(p) <= len(zeros) && len(p) >= 4096 && bytes.Equal(p, zeros[:len(p)]) {
		s.n += int64(len(p))
		return len(p), nil
	}
	n, err := s.f.WriteAt(p, s.n)
	s.n += int64(n)
	return n, err
}
