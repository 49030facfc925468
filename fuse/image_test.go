//go:build integration

package fuse

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// imageModes runs a test of an image with passthrough and without.
func imageModes(t *testing.T, f func(t *testing.T, o Options)) {
	for _, pass := range []bool{true, false} {
		t.Run(fmt.Sprintf("passthrough %v", pass), func(t *testing.T) { f(t, Options{Passthrough: pass}) })
	}
}

func TestImage(t *testing.T) {
	imageModes(t, func(t *testing.T, o Options) {
		s := serveImage(t, map[string]madeFile{
			"f": {}, "d/sub/g": {}, "d/h": {mode: unix.S_IFREG | 0o4711, uid: 7, gid: 8}, "l": {mode: unix.S_IFLNK | 0o777, target: "d/sub"},
			"null": {mode: unix.S_IFCHR | 0o666, rdev: unix.Mkdev(1, 3)}, "p": {mode: unix.S_IFIFO | 0o600}, "x": {xattrs: map[string]string{"user.a": "b\x00c"}},
		}, o)
		for _, name := range []string{"f", "d/sub/g", "d/h"} {
			for range 2 {
				wantContent(t, s.path(name), name)
			}
		}
		wantContent(t, s.path("l/g"), "d/sub/g")
		var st unix.Stat_t
		must(t, unix.Lstat(s.path("d/h"), &st))
		if st.Mode != unix.S_IFREG|0o4711 || st.Uid != 7 || st.Gid != 8 || st.Size != 3 || st.Mtim != (unix.Timespec{Sec: 1_000_000_000, Nsec: 7}) {
			t.Errorf("%+v", st)
		}
		must(t, unix.Lstat(s.path("null"), &st))
		if st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("%+v", st)
		}
		if got := shell(t, `cd "$1" && find . | sort | tr '\n' ' '`, s.mnt); got != ". ./d ./d/h ./d/sub ./d/sub/g ./f ./l ./null ./p ./x " {
			t.Errorf("its files are %s", got)
		}
		buf := make([]byte, 10)
		if n, err := unix.Getxattr(s.path("x"), "user.a", buf); err != nil || string(buf[:n]) != "b\x00c" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		_, err := unix.Getxattr(s.path("x"), "user.b", buf)
		wantErr(t, "an attribute that is not there", err, unix.ENODATA)
		_, err = unix.Getxattr(s.path("x"), "user.a", buf[:2])
		wantErr(t, "too short a buffer", err, unix.ERANGE)
		_, err = os.ReadFile(s.path("f/x"))
		wantErr(t, "a file as directory", err, unix.ENOTDIR)
		// Names that are not there are remembered, as all else.
		_, err = os.Stat(s.path("nothing"))
		wantErr(t, "what is not there", err, unix.ENOENT)
		if got := upcalls(s, func() {
			for range 3 {
				_, _ = os.Stat(s.path("nothing"))
				_, _ = os.Stat(s.path("d/h"))
			}
		}); len(got) > 0 {
			t.Errorf("asked again: %v", got)
		}
	})
}

// The kernel reads what is open in passthrough mode by itself, the opens of one file at the same time, too.
func TestImagePassthrough(t *testing.T) {
	s := serveImage(t, map[string]madeFile{"f": {}}, Options{Passthrough: true})
	got := upcalls(s, func() {
		a, err := os.Open(s.path("f"))
		must(t, err)
		defer a.Close()
		b, err := os.Open(s.path("f"))
		must(t, err)
		defer b.Close()
		for _, f := range []*os.File{a, b} {
			data, err := io.ReadAll(f)
			if string(data) != "f" {
				t.Errorf("%q, %v", data, err)
			}
		}
		data, err := unix.Mmap(int(a.Fd()), 0, 1, unix.PROT_READ, unix.MAP_SHARED)
		must(t, err)
		defer func() { must(t, unix.Munmap(data)) }()
		if data[0] != 'f' {
			t.Errorf("mapped: %q", data)
		}
	})
	if got["READ"] != 0 || got["OPEN"] != 2 {
		t.Errorf("requests: %v", got)
	}
}

// An image whose contents are on overlayfs: the kernel takes a second file system below ours, and no third.
func TestImageOnOverlay(t *testing.T) {
	dir := tempDir(t)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	over := func(lower, on string) error {
		return unix.Mount("overlay", on, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir))
	}
	merged := filepath.Join(dir, "merged")
	must(t, over(filepath.Join(dir, "lower"), merged))
	t.Cleanup(func() { must(t, unix.Unmount(merged, 0)) })
	s := serveOn(t, merged, Options{Files: makeImage(t, merged, map[string]madeFile{"d/f": {}}), Passthrough: true})
	got := upcalls(s, func() { wantContent(t, s.path("d/f"), "d/f") })
	if got["READ"] != 0 {
		t.Errorf("requests: %v", got)
	}
	on := tempDir(t)
	lowers := func(s *served) error {
		return unix.Mount("overlay", on, "overlay", unix.MS_RDONLY, "lowerdir="+s.path("d")+":"+s.tree)
	}
	wantErr(t, "an overlay over it", lowers(s), unix.EINVAL)
	plain := serveImage(t, map[string]madeFile{"d/f": {}}, Options{Passthrough: true})
	must(t, lowers(plain))
	defer func() { must(t, unix.Unmount(on, 0)) }()
	if got := shell(t, `cat "$1/f"`, on); got != "d/f" {
		t.Errorf("by way of an overlay over it: %q", got)
	}
}

// Who is outside of the session gets nothing of it.
func TestImageOpenerIsChecked(t *testing.T) {
	imageModes(t, func(t *testing.T, o Options) {
		var closed atomic.Bool
		o.Allow = func(uint32) bool { return !closed.Load() }
		o.Extra = map[string]Entry{"d/made": {Mode: unix.S_IFREG | 0o644, Content: []byte("made")}, "made": {Mode: unix.S_IFLNK | 0o777, Target: "f"}}
		s := serveImage(t, map[string]madeFile{"f": {xattrs: map[string]string{"user.a": "b"}}, "d/g": {}, "l": {mode: unix.S_IFLNK | 0o777, target: "f"}}, o)
		wantContent(t, s.path("f"), "f")
		closed.Store(true)
		buf := make([]byte, 10)
		for what, do := range map[string]func() error{
			"open":           func() error { _, err := os.Open(s.path("f")); return err },
			"open made-up":   func() error { _, err := os.Open(s.path("d/made")); return err },
			"list":           func() error { _, err := os.ReadDir(s.path("d")); return err },
			"readlink":       func() error { _, err := os.Readlink(s.path("l")); return err },
			"readlink, made": func() error { _, err := os.Readlink(s.path("made")); return err },
			"getxattr":       func() error { _, err := unix.Getxattr(s.path("f"), "user.a", buf); return err },
			"listxattr":      func() error { _, err := unix.Listxattr(s.path("f"), buf); return err },
		} {
			wantErr(t, what, do(), unix.EACCES)
		}
		closed.Store(false)
		wantContent(t, s.path("f"), "f")
		wantContent(t, s.path("d/made"), "made")
	})
}

// What whom the image is for may not have is refused to all, root included.
func TestImageOfSomebodyElse(t *testing.T) {
	imageModes(t, func(t *testing.T, o Options) {
		o.Caller = &Credential{UID: 1000, GID: 1000}
		o.Extra = map[string]Entry{"closed/made": {Mode: unix.S_IFREG | 0o644, Content: []byte("made")}}
		s := serveImage(t, map[string]madeFile{
			"f": {}, "secret": {refused: unix.R_OK}, "closed": {mode: unix.S_IFDIR | 0o755, refused: unix.R_OK | unix.X_OK}, "closed/x": {},
			"blind": {mode: unix.S_IFDIR | 0o755, refused: unix.R_OK}, "blind/x": {},
		}, o)
		wantContent(t, s.path("f"), "f")
		wantContent(t, s.path("blind/x"), "blind/x")
		wantContent(t, s.path("closed/made"), "made")
		for _, name := range []string{"secret", "closed/x", "closed/none", "closed", "blind"} {
			_, err := os.Open(s.path(name))
			wantErr(t, name, err, unix.EACCES)
		}
	})
}

// Owners are those of the machine, in attributes too.
func TestImageIDsAreMapped(t *testing.T) {
	ids := []IDRange{{Tree: 0, Session: 100_000, Count: 1000}}
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, 1<<32 - 1}, {aclUser, 4, 33}, {4, 4, 1<<32 - 1}, {16, 4, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		acl = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(acl, e.tag), e.perm), e.id)
	}
	s := serveImage(t, map[string]madeFile{
		"f": {uid: 5, gid: 33}, "other": {uid: 1000, gid: 70_000}, "acl": {mode: unix.S_IFREG | 0o640, xattrs: map[string]string{aclAccess: string(acl)}},
	}, Options{IDs: IDMap{UID: ids, GID: ids}, Passthrough: true, Extra: map[string]Entry{"made": {Mode: unix.S_IFREG | 0o644}}})
	for name, want := range map[string][2]uint32{"f": {100_005, 100_033}, "other": {65534, 65534}, "made": {100_000, 100_000}} {
		var st unix.Stat_t
		must(t, unix.Stat(s.path(name), &st))
		if got := [2]uint32{st.Uid, st.Gid}; got != want {
			t.Errorf("%s is of %v, want %v", name, got, want)
		}
	}
	for uid, want := range map[uint32]error{100_033: nil, 33: unix.EACCES, 100_000: nil} {
		asUser(t, uid, 100_099, nil, func() {
			fd, err := unix.Open(s.path("acl"), unix.O_RDONLY, 0)
			if err == nil {
				unix.Close(fd)
			}
			wantErr(t, fmt.Sprintf("uid %d, by the access control list", uid), err, want)
		})
	}
}

// Nothing can be changed, also where the mount does not say that it is read-only, as that of a session does.
func TestImageCannotBeChanged(t *testing.T) {
	s := serveImage(t, map[string]madeFile{"f": {mode: unix.S_IFREG | 0o666}, "d/g": {}}, Options{Passthrough: true, Writable: true})
	all := map[string]func() error{
		"write":    func() error { _, err := os.OpenFile(s.path("f"), os.O_RDWR, 0); return err },
		"truncate": func() error { return unix.Truncate(s.path("f"), 0) },
		"create":   func() error { _, err := os.Create(s.path("new")); return err },
		"mkdir":    func() error { return unix.Mkdir(s.path("new"), 0o755) },
		"unlink":   func() error { return unix.Unlink(s.path("f")) },
		"rmdir":    func() error { return unix.Rmdir(s.path("d")) },
		"rename":   func() error { return unix.Rename(s.path("f"), s.path("g")) },
		"link":     func() error { return unix.Link(s.path("f"), s.path("g")) },
		"symlink":  func() error { return unix.Symlink("f", s.path("g")) },
		"mknod":    func() error { return unix.Mknod(s.path("g"), unix.S_IFIFO|0o600, 0) },
		"chmod":    func() error { return unix.Chmod(s.path("f"), 0o777) },
		"chown":    func() error { return unix.Chown(s.path("f"), 1, 1) },
		"utimes":   func() error { return unix.Utimes(s.path("f"), []unix.Timeval{{}, {}}) },
		"setxattr": func() error { return unix.Setxattr(s.path("f"), "user.a", []byte("b"), 0) },
		"rmxattr":  func() error { return unix.Removexattr(s.path("f"), "user.a") },
	}
	for what, do := range all {
		if do() == nil {
			t.Errorf("%s is no error", what)
		}
	}
	must(t, unix.Mount("", s.mnt, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	for what, do := range all {
		wantErr(t, what, do(), unix.EROFS)
	}
	wantContent(t, s.path("f"), "f")
	wantContent(t, s.path("d/g"), "d/g")
}

// Attributes that are the business of the host's root are not told to others.
func TestImageTrustedAttributes(t *testing.T) {
	s := serveImage(t, map[string]madeFile{"f": {xattrs: map[string]string{"trusted.a": "x", "user.a": "x"}}}, Options{})
	list := func() string {
		buf := make([]byte, 100)
		n, err := unix.Listxattr(s.path("f"), buf)
		must(t, err)
		return string(buf[:n])
	}
	if got := list(); got != "trusted.a\x00user.a\x00" {
		t.Errorf("root is told %q", got)
	}
	asUser(t, 1000, 1000, nil, func() {
		if got := list(); got != "user.a\x00" {
			t.Errorf("others are told %q", got)
		}
		_, err := unix.Getxattr(s.path("f"), "trusted.a", make([]byte, 10))
		wantErr(t, "the attribute", err, unix.ENODATA)
	})
}

// Made-up entries take the places of the image's, have one inode number each, and are listed once.
func TestImageWithMadeUpEntries(t *testing.T) {
	regular := Entry{Mode: unix.S_IFREG | 0o644, Content: []byte("made")}
	s := serveImage(t, map[string]madeFile{
		"etc/hosts": {}, "etc/passwd": {}, "var": {mode: unix.S_IFLNK | 0o777, target: "etc"}, "tmp/x": {}, "usr/f": {},
	}, Options{Extra: map[string]Entry{
		"etc/hosts": regular, "etc/new": regular, "var/lib/cntr": {Mode: unix.S_IFDIR | 0o755}, "tmp": {Mode: unix.S_IFDIR | 0o1777}, "usr/f/below": regular,
	}})
	wantContent(t, s.path("etc/hosts"), "made")
	wantContent(t, s.path("etc/new"), "made")
	wantContent(t, s.path("etc/passwd"), "etc/passwd")
	wantContent(t, s.path("usr/f/below"), "made")
	script := `cd "$1" && find . -printf '%p %i\n' | sort >"$2" && find . -exec stat -c '%n %i' {} + | sort | cmp - "$2" && cut -d ' ' -f 1 "$2" | tr '\n' ' '`
	got := shell(t, script, s.mnt, filepath.Join(tempDir(t), "list"))
	if want := ". ./etc ./etc/hosts ./etc/new ./etc/passwd ./tmp ./usr ./usr/f ./usr/f/below ./var ./var/lib ./var/lib/cntr "; got != want {
		t.Errorf("its files are\n%s\nwant\n%s", got, want)
	}
}

// Descriptors are for what is open, and a bounded number on top; what cannot be opened is tried again.
func TestImageDescriptorsAreBounded(t *testing.T) {
	const most = 16
	var broken atomic.Bool
	broken.Store(true)
	all := map[string]madeFile{"broken": {broken: &broken}}
	for n := range 200 {
		all[fmt.Sprintf("d/%03d", n)] = madeFile{}
	}
	s := serveImage(t, all, Options{Descriptors: most, Passthrough: true})
	before := openFDs(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range 200 {
				name := fmt.Sprintf("d/%03d", n)
				wantContent(t, s.path(name), name)
			}
		}()
	}
	wg.Wait()
	waitFor(t, "released", func() bool { return openFDs(t)-before <= most })
	image := s.ops.(*imageTree)
	for range 2 {
		_, err := os.Open(s.path("broken"))
		wantErr(t, "what cannot be opened", err, unix.EIO)
	}
	broken.Store(false)
	wantContent(t, s.path("broken"), "broken")
	waitFor(t, "closed after a while", func() bool {
		time.Sleep(10 * time.Millisecond)
		image.contents.mu.Lock()
		defer image.contents.mu.Unlock()
		return len(image.contents.open) == 0
	})
	if got := openFDs(t) - before; got > 0 {
		t.Errorf("%d descriptors are left", got)
	}
	if strings.Contains(shell(t, `cat "$1"/d/* | head -c 5`, s.mnt), "\x00") {
		t.Error("files are empty")
	}
}

// TestImageFilesAreOpenedOnlyForPassthrough reads files again and again, and counts what reaches the server.
func TestImageFilesAreOpenedOnlyForPassthrough(t *testing.T) {
	const times = 10
	imageModes(t, func(t *testing.T, o Options) {
		s := serveImage(t, map[string]madeFile{"d/f": {}, "g": {}}, o)
		before := s.Requests()
		for range times {
			wantContent(t, s.path("d/f"), "d/f")
			wantContent(t, s.path("g"), "g")
			if len(listNames(t, s.path("d"))) != 1 {
				t.Error("d has not one entry")
			}
		}
		f, err := os.Open(s.path("g"))
		must(t, err)
		defer f.Close()
		if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || off != 1 {
			t.Errorf("SEEK_HOLE: %d, %v", off, err)
		}
		want := map[string]uint64{"OPEN": 2*times + 1, "OPENDIR": 1, "RELEASEDIR": 0, "READ": 0}
		if !o.Passthrough {
			want = map[string]uint64{"OPEN": 1, "OPENDIR": 1, "RELEASEDIR": 0, "READ": 2}
		}
		after := s.Requests()
		for kind, n := range want {
			if got := after[kind] - before[kind]; got != n {
				t.Errorf("%d %s, want %d", got, kind, n)
			}
		}
	})
}
