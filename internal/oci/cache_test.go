package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// names lists what a cache has in a directory.
func (c *Cache) names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.path, dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// open opens all files of an image.
func (i *Image) open(t *testing.T) {
	t.Helper()
	for n := range i.inodes {
		if e := i.inodes[n].entry; e == nil || e.kind != tar.TypeReg {
			continue
		}
		f, err := i.Open(uint32(n))
		if err != nil {
			t.Error(err)
			continue
		}
		_ = f.Close()
	}
}

// Sessions that add little each, as many do, do not fill the cache together; what has holes counts as what it takes.
func TestCacheIsBoundedForManySessions(t *testing.T) {
	const each, limit = 64 << 10, 1 << 20
	dir := cache(t).path
	for n := range 60 {
		c, err := OpenCache(dir)
		if err != nil {
			t.Fatal(err)
		}
		c.limit, c.added = limit, c.added%(limit/roomShare+1) // as OpenCache would have it
		layout(t, "plain", tarOf(t, file("f", noise(int64(n), each)), file("holes", strings.Repeat("\x00", 1<<20)+fmt.Sprint(n)))).must(c).open(t)
	}
	total := int64(0)
	c := cache(t)
	c.path = dir
	for _, sub := range []string{"layers", c.files} {
		for _, name := range c.names(t, sub) {
			info, err := os.Stat(filepath.Join(dir, sub, name))
			if err != nil {
				t.Fatal(err)
			}
			total += space(info)
		}
	}
	// What makes room is a matter of chance, of 60 chances here.
	if most := int64(limit * 3 / 2); total > most || total < limit/4 {
		t.Errorf("the cache has %d bytes, which should be near %d", total, limit)
	}
}

// A layer whose copy would be longer than the cache is refused, and leaves nothing.
func TestLayerLongerThanTheCache(t *testing.T) {
	c := cache(t)
	c.limit = 1 << 20
	_, err := layout(t, "gzip", tarOf(t, file("f", noise(1, 2<<20)))).load(c)
	if err == nil || !strings.Contains(err.Error(), "does not fit") || len(c.names(t, "layers")) > 0 {
		t.Errorf("%v, %q", err, c.names(t, "layers"))
	}
}

// What is found to be damaged is made anew for the next session.
func TestDamagedCopyIsForgotten(t *testing.T) {
	l := layout(t, "gzip", tarOf(t, file("f", noise(1, frameSize/2))))
	c := cache(t)
	i := l.must(c)
	copies, _ := filepath.Glob(filepath.Join(c.path, "layers/*.data")) // the pattern is one
	data, err := os.ReadFile(copies[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(copies[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	n, _ := i.lookupPath("f")
	if _, err := i.Open(n); !errors.Is(err, errDamaged) {
		t.Fatal(err)
	}
	want(t, l.must(c), map[string]string{"f": noise(1, frameSize/2)})
}

// What was kept in an earlier boot is removed.
func TestContentsOfAnEarlierBoot(t *testing.T) {
	c := cache(t)
	old := filepath.Join(c.path, "files-earlier")
	if err := os.WriteFile(filepath.Join(c.path, c.files, "now"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	if list := c.stale(); len(list) != 1 || list[0] != old {
		t.Errorf("stale: %q", list)
	}
	c.Prune()
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) || len(c.names(t, c.files)) != 1 {
		t.Errorf("%v, %q", err, c.names(t, c.files))
	}
}

// An image that somebody could not read themselves gives them what its permissions give.
func TestRestricted(t *testing.T) {
	owned := func(h tar.Header, mode int64, uid, gid int) tar.Header {
		h.Mode, h.Uid, h.Gid = mode, uid, gid
		return h
	}
	acl := owned(file("acl", "x"), 0o644, 0, 0)
	acl.PAXRecords = map[string]string{"SCHILY.xattr.system.posix_acl_access": "\x02\x00\x00\x00"}
	i := layout(t, "plain", tarOf(t,
		folder("."), file("all", "x"), owned(file("root", "x"), 0o600, 0, 0), owned(file("mine", "x"), 0o600, 7, 0),
		owned(file("not-mine", "x"), 0o044, 7, 0), owned(file("group", "x"), 0o640, 0, 8), owned(file("groups", "x"), 0o640, 0, 9),
		owned(file("not-groups", "x"), 0o604, 0, 9), owned(folder("closed"), 0o700, 0, 0), file("closed/x", "x"), folder("closed/d"), file("closed/d/x", "x"),
		hardlink("linked", "closed/x"), owned(folder("list"), 0o744, 0, 0), file("list/x", "x"), owned(folder("blind"), 0o711, 0, 0), file("blind/x", "x"), acl,
		symlink("to", "root"), symlink("into", "closed/d/x"))).must(cache(t))
	for _, name := range []string{"/all", "/root", "/closed/d/x"} {
		if _, err := i.ReadFile(name, 10); err != nil {
			t.Errorf("whose image it is: %v", err)
		}
	}
	i.Restrict(7, 8, []uint32{9})
	for name, rights := range map[string]string{
		"": "rx", "all": "r", "root": "", "mine": "r", "not-mine": "", "group": "r", "groups": "r", "not-groups": "", "closed": "", "closed/x": "r", // by "linked"
		"closed/d": "none", "closed/d/x": "none", "linked": "r", "list": "r", "list/x": "none", "blind": "x", "blind/x": "r", "acl": "",
	} {
		n, ok := i.lookupPath(name)
		if !ok {
			t.Fatalf("no %q", name)
		}
		got := ""
		switch {
		case !i.Permits(n, 0):
			got = "none"
		default:
			if i.Permits(n, unix.R_OK) {
				got = "r"
			}
			if i.Permits(n, unix.X_OK) {
				got += "x"
			}
		}
		if got != rights {
			t.Errorf("%q: %q, want %q", name, got, rights)
		}
		_, err := i.ReadFile("/"+name, 10)
		if regular := i.kind(n) == tar.TypeReg; regular && (err == nil) != strings.HasPrefix(rights, "r") {
			t.Errorf("reading %q: %v", name, err)
		}
	}
	for _, name := range []string{"/to", "/into"} {
		if _, err := i.ReadFile(name, 10); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("reading %q: %v", name, err)
		}
	}
	if i.Exists("/closed/d/x") || !i.Exists("/root") {
		t.Error("what is in a directory that may not be searched is told")
	}
}

func (i *Image) kind(n uint32) byte {
	if e := i.inodes[n].entry; e != nil {
		return e.kind
	}
	return tar.TypeDir
}

// Directories on a path are left by "..", wherever a link has led.
func TestLinksAreFollowedAsTheKernelDoes(t *testing.T) {
	i := layout(t, "plain", tarOf(t, folder("usr/local/bin"), symlink("bin", "usr/local/bin"), symlink("usr/local/bin/sh", "../sh"),
		file("usr/local/sh", "x"), symlink("up", "bin/.."))).must(cache(t))
	for _, name := range []string{"/bin/sh", "/up/sh", "/bin/../sh"} {
		if data, err := i.ReadFile(name, 10); err != nil || string(data) != "x" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

// Long links that take long to follow, once for each of many entries.
func TestLinksThatTakeTime(t *testing.T) {
	links := many(maxLinks, func(n int) tar.Header {
		return symlink(fmt.Sprint("l", n), strings.Repeat("/", unix.PathMax-9)+fmt.Sprint("l", n+1))
	})
	entries := many(20_000, func(n int) tar.Header { return file(fmt.Sprint("l0/", n), "") })
	refused(t, layout(t, "zstd", tarOf(t, append(append(links, folder(fmt.Sprint("l", maxLinks))), entries...)...)), "takes too long")
}

// A file whose name ends in a slash is a directory, and its content is passed over.
func TestFolderWithContent(t *testing.T) {
	data := tarOf(t, file("d.", strings.Repeat("x", 3000)), file("after", "after"))
	data[1] = '/'
	sum := 0
	copy(data[148:156], "        ")
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	want(t, layout(t, "plain", data).must(cache(t)), map[string]string{"d": "/", "after": "after"})
}
