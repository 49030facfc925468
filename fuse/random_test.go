//go:build integration

package fuse

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The random test does what fsx and fsstress do: the same long sequence of random operations on our mount and on a plain
// directory, where every result must be the same, and from time to time the whole trees. As .ci/run does it, with
// 1,000,000 operations and the race detector:
//
//	TEST_OPERATIONS=1000000 make test TESTFLAGS=-race
var (
	opsFlag  = flag.Int("ops", operations(), "operations of TestRandomOperations, over all variants")
	seedFlag = flag.Uint64("seed", 0, "seed of TestRandomOperations; 0: another one each time")
)

func operations() int {
	if n, err := strconv.Atoi(os.Getenv("TEST_OPERATIONS")); err == nil {
		return n
	}
	return 12000
}

func TestRandomOperations(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	all := append(variants(), variant{name: "caller is a user", o: Options{Caller: &Credential{UID: 1000, GID: 1000}}},
		variant{name: "caller is a user, passthrough", o: Options{Passthrough: true, Caller: &Credential{UID: 1000, GID: 1000}}})
	threads := []int{1, 8}
	ops := *opsFlag / len(all) / len(threads)
	for _, v := range all {
		for _, n := range threads {
			t.Run(fmt.Sprintf("%s, %d threads", v.name, n), func(t *testing.T) {
				t.Logf("seed %d", seed)
				v.o.Writable = true
				s := serve(t, v.tree(t), v.o)
				plain := files(t)
				who := func(f func()) { f() }
				if c := v.o.Caller; c != nil {
					must(t, os.Chown(s.tree, int(c.UID), int(c.GID)))
					must(t, os.Chown(plain, int(c.UID), int(c.GID)))
					who = func(f func()) { asUser(t, c.UID, c.GID, nil, f) }
				}
				var wg sync.WaitGroup
				for i := range n {
					r := &random{
						t: t, setID: !v.o.Passthrough, Rand: rand.New(rand.NewPCG(seed, uint64(i))), id: i,
						dirs: [2]string{s.path(fmt.Sprint(i)), filepath.Join(plain, fmt.Sprint(i))},
					}
					wg.Add(1)
					go func() {
						defer wg.Done()
						who(func() { r.run(ops / n) })
					}()
				}
				wg.Wait()
				if !t.Failed() {
					s.unmount(t)
					// What the session wrote is on the tree, whatever the kernel had in memory.
					if a, b := describe(s.tree, v.o.IDs), describe(plain, IDMap{}); a != b {
						t.Errorf("trees differ:\n%s", diff(a, b))
					}
				}
			})
		}
	}
}

// random runs operations in two directories.
type random struct {
	*rand.Rand
	t  *testing.T
	id int

	setID bool // modes with set-id bits too: root's writes clear them in passthrough mode, see firstIO

	dirs [2]string
	open [][2]int // files that are open, in both
	log  []string
}

const maxSize = 300 << 10

var names = []string{"a", "b", "c", "d", "e", "f", "d1/a", "d1/b", "d1/d2/a", "d1/d2", "d1", "d3", "d3/a", "n\xff\xfe"}

func (r *random) name() string { return names[r.IntN(len(names))] }

// run does n operations.
func (r *random) run(n int) {
	for _, dir := range r.dirs {
		must(r.t, os.Mkdir(dir, 0o755))
	}
	defer func() {
		for _, f := range r.open {
			unix.Close(f[0])
			unix.Close(f[1])
		}
	}()
	for i := range n {
		if r.t.Failed() {
			return
		}
		what, do := r.next()
		var got [2]string
		for side := range got {
			got[side] = do(side)
		}
		r.log = append(r.log, fmt.Sprintf("%6d %s: %s", i, what, got[1]))
		if got[0] != got[1] {
			r.t.Errorf("thread %d, operation %d: %s\n on the mount: %s\nplain: %s\nafter:\n%s",
				r.id, i, what, got[0], got[1], strings.Join(r.log[max(0, len(r.log)-25):], "\n"))
			return
		}
		if i%500 == 499 {
			if a, b := describe(r.dirs[0], IDMap{}), describe(r.dirs[1], IDMap{}); a != b {
				r.t.Errorf("thread %d, operation %d: trees differ:\n%s\nafter:\n%s",
					r.id, i, diff(a, b), strings.Join(r.log[max(0, len(r.log)-500):], "\n"))
				return
			}
		}
	}
}

// result describes what an operation returned.
func result(err error, more ...any) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return strings.TrimSpace(fmt.Sprintln(more...))
}

// next chooses an operation. It must be the same on both sides: all that is random is drawn here.
func (r *random) next() (string, func(side int) string) {
	name, other := r.name(), r.name()
	path := func(side int) string { return r.dirs[side] + "/" + name }
	path2 := func(side int) string { return r.dirs[side] + "/" + other }
	size, off := r.IntN(20000), int64(r.IntN(maxSize-20000))
	mode := []uint32{0o600, 0o644, 0o755, 0o4755, 0o2775, 0o1777, 0o444}[r.IntN(7)]
	if !r.setID {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	fill := byte(r.IntN(256))
	pick := r.IntN(100)
	var f [2]int
	if len(r.open) > 0 {
		f = r.open[r.IntN(len(r.open))]
	} else if pick < 40 {
		pick = 40
	}
	data := func() []byte {
		b := make([]byte, size)
		for i := range b {
			b[i] = fill + byte(i>>6)
		}
		return b
	}
	switch {
	case pick < 10:
		return fmt.Sprintf("pwrite %v %d at %d", f, size, off), func(side int) string {
			n, err := unix.Pwrite(f[side], data(), off)
			return result(err, n)
		}
	case pick < 13:
		return fmt.Sprintf("write %v %d", f, size/8), func(side int) string {
			n, err := unix.Write(f[side], data()[:size/8])
			return result(err, n)
		}
	case pick < 20:
		return fmt.Sprintf("pread %v %d at %d", f, size, off), func(side int) string {
			b := make([]byte, size)
			n, err := unix.Pread(f[side], b, off)
			return result(err, n, checksum(b))
		}
	case pick < 23:
		return fmt.Sprintf("ftruncate %v %d", f, off), func(side int) string { return result(unix.Ftruncate(f[side], off)) }
	case pick < 26:
		// Not COLLAPSE_RANGE and INSERT_RANGE: the kernel refuses them for FUSE (EOPNOTSUPP).
		m := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}[r.IntN(4)]
		return fmt.Sprintf("fallocate %v %#x %d at %d", f, m, size, off), func(side int) string {
			return result(unix.Fallocate(f[side], m, off, int64(size+1)))
		}
	case pick < 30:
		return fmt.Sprintf("fstat %v", f), func(side int) string {
			var st unix.Stat_t
			err := unix.Fstat(f[side], &st)
			return result(err, statLine(&st))
		}
	case pick < 32:
		return fmt.Sprintf("fchmod %v %o", f, mode), func(side int) string { return result(unix.Fchmod(f[side], mode)) }
	case pick < 34:
		return fmt.Sprintf("fsync %v", f), func(side int) string { return result(unix.Fsync(f[side])) }
	case pick < 36:
		g := r.open[r.IntN(len(r.open))]
		return fmt.Sprintf("copy_file_range %v 0 to %v %d, %d", f, g, off, size), func(side int) string {
			from, to := int64(size), off
			n, err := unix.CopyFileRange(f[side], &from, g[side], &to, size, 0)
			return result(err, n)
		}
	case pick < 40 || len(r.open) > 12:
		i := r.IntN(len(r.open))
		f := r.open[i]
		r.open = append(r.open[:i], r.open[i+1:]...)
		return fmt.Sprintf("close %v", f), func(side int) string { return result(unix.Close(f[side])) }
	case pick < 55:
		flags := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR}[r.IntN(4)] | unix.O_NONBLOCK | unix.O_CLOEXEC
		for _, bit := range []int{unix.O_CREAT, unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_NOFOLLOW, unix.O_SYNC} {
			if r.IntN(4) == 0 {
				flags |= bit
			}
		}
		if r.IntN(20) == 0 {
			flags = flags&^(unix.O_CREAT|unix.O_TRUNC) | unix.O_TMPFILE
		}
		var fds [2]int
		return fmt.Sprintf("open %q %#x", name, flags), func(side int) string {
			fd, err := unix.Open(path(side), flags, mode)
			fds[side] = fd
			if side == 1 {
				if fds[0] >= 0 && fds[1] >= 0 {
					r.open = append(r.open, fds)
				} else if fds[0] >= 0 || fds[1] >= 0 {
					unix.Close(max(fds[0], fds[1]))
				}
			}
			return result(err)
		}
	case pick < 60:
		return fmt.Sprintf("mkdir %q %o", name, mode), func(side int) string { return result(unix.Mkdir(path(side), mode)) }
	case pick < 64:
		return fmt.Sprintf("unlink %q", name), func(side int) string { return result(unix.Unlink(path(side))) }
	case pick < 66:
		return fmt.Sprintf("rmdir %q", name), func(side int) string { return result(unix.Rmdir(path(side))) }
	case pick < 73:
		flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.IntN(4)]
		return fmt.Sprintf("rename %q %q %d", name, other, flags), func(side int) string {
			return result(unix.Renameat2(unix.AT_FDCWD, path(side), unix.AT_FDCWD, path2(side), flags))
		}
	case pick < 77:
		return fmt.Sprintf("link %q %q", name, other), func(side int) string { return result(unix.Link(path(side), path2(side))) }
	case pick < 79:
		return fmt.Sprintf("symlink %q %q", other, name), func(side int) string { return result(unix.Symlink(other, path(side))) }
	case pick < 80:
		return fmt.Sprintf("mkfifo %q", name), func(side int) string { return result(unix.Mknod(path(side), unix.S_IFIFO|mode, 0)) }
	case pick < 82:
		return fmt.Sprintf("readlink %q", name), func(side int) string {
			target, err := os.Readlink(path(side))
			return result(err, target)
		}
	case pick < 84:
		return fmt.Sprintf("truncate %q %d", name, off), func(side int) string { return result(unix.Truncate(path(side), off)) }
	case pick < 86:
		return fmt.Sprintf("chmod %q %o", name, mode), func(side int) string { return result(unix.Chmod(path(side), mode)) }
	case pick < 88:
		uid, gid := r.IntN(900)-1, r.IntN(900)-1
		return fmt.Sprintf("lchown %q %d %d", name, uid, gid), func(side int) string { return result(unix.Lchown(path(side), uid, gid)) }
	case pick < 90:
		ts := []unix.Timespec{{Sec: off, Nsec: off}, {Sec: off * 3, Nsec: off * 7}}
		return fmt.Sprintf("utimensat %q %d", name, off), func(side int) string {
			var st unix.Stat_t
			err := unix.UtimesNanoAt(unix.AT_FDCWD, path(side), ts, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil {
				err = unix.Lstat(path(side), &st)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFLNK && st.Nlink > 1 {
				st.Atim = unix.Timespec{} // the way to it may lead by another of its names, and following that is access, see doc.go
			}
			return result(err, st.Atim, st.Mtim)
		}
	case pick < 93:
		attr := []string{"user.a", "user.b", "trusted.c", "security.capability", "nonsense"}[r.IntN(5)]
		return fmt.Sprintf("setxattr %q %s %d", name, attr, size%300), func(side int) string {
			return result(unix.Lsetxattr(path(side), attr, data()[:size%300], 0))
		}
	case pick < 94:
		return fmt.Sprintf("removexattr %q", name), func(side int) string { return result(unix.Lremovexattr(path(side), "user.a")) }
	case pick < 97:
		return fmt.Sprintf("lstat %q", name), func(side int) string {
			var st unix.Stat_t
			err := unix.Lstat(path(side), &st)
			return result(err, statLine(&st))
		}
	default:
		return fmt.Sprintf("list %q", name), func(side int) string {
			entries, err := os.ReadDir(path(side))
			var list []string
			for _, e := range entries {
				list = append(list, e.Name()+" "+e.Type().String())
			}
			return result(err, list)
		}
	}
}

func statLine(st *unix.Stat_t) string {
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	return fmt.Sprintf("%o %d:%d links %d size %d", st.Mode, st.Uid, st.Gid, st.Nlink, size)
}

// describe lists a tree with its contents and attributes. Owners are mapped as a session would see them.
func describe(root string, ids IDMap) string {
	var lines []string
	err := filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
		rel, _ := filepath.Rel(root, path)
		if err != nil { // a directory that a user may not look into
			lines = append(lines, fmt.Sprintf("%q %s", rel, result(err)))
			return nil
		}
		if rel == "." {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		st.Uid, st.Gid = show(ids.UID, st.Uid), show(ids.GID, st.Gid)
		line := fmt.Sprintf("%q %s", rel, statLine(&st))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" sum %x", checksum(data))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		buf := make([]byte, 1024)
		n, err := unix.Llistxattr(path, buf)
		if err != nil {
			return err
		}
		attrs := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		sort.Strings(attrs)
		for _, attr := range attrs {
			if attr != "" {
				n, err := unix.Lgetxattr(path, attr, buf)
				line += fmt.Sprintf(" %s %x %v", attr, checksum(buf[:max(n, 0)]), err)
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		lines = append(lines, err.Error())
	}
	return strings.Join(lines, "\n")
}

// diff returns the lines that are in one of two texts only.
func diff(a, b string) string {
	count := make(map[string]int)
	for _, l := range strings.Split(a, "\n") {
		count[l]++
	}
	for _, l := range strings.Split(b, "\n") {
		count[l]--
	}
	var out []string
	for l, n := range count {
		if n != 0 {
			out = append(out, fmt.Sprintf("%+d %s", n, l))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
