package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noise is content that does not compress, longer than a frame.
func noise(seed int64, size int) string {
	b := make([]byte, size)
	r := rand.New(rand.NewSource(seed))
	_, _ = r.Read(b) // never fails
	return string(b)
}

func TestContents(t *testing.T) {
	long := noise(1, 3*frameSize+17)
	for _, how := range []string{"plain", "gzip", "zstd", "chunked", "stargz"} {
		l := layout(t, how,
			tarOf(t, folder("./"), folder("./bin/"), file("./bin/tool", long), file("bin/empty", ""), file("zeros", strings.Repeat("\x00", 100_000))),
			tarOf(t, file("/bin/other", "other"), symlink("sbin", "bin"), file("sbin/by-link", "x"), hardlink("hard", "sbin/tool")))
		c := cache(t)
		for range 2 { // from the layers, from the cache
			i := l.must(c)
			want(t, i, map[string]string{
				"bin": "/", "bin/tool": long, "bin/empty": "", "bin/other": "other", "bin/by-link": "x", "sbin": "→bin", "hard": long,
				"zeros": strings.Repeat("\x00", 100_000),
			})
			if !i.Exists("/bin/empty") || i.Exists("/bin/nothing") || !i.Exists("/sbin/tool") || len(i.Environ) != 1 {
				t.Errorf("%s: %q", how, i.Environ)
			}
		}
		// All of it can go at any time.
		i := l.must(c)
		if err := os.RemoveAll(c.path); err != nil {
			t.Fatal(err)
		}
		want(t, i, map[string]string{"bin/tool": long, "bin/other": "other"})
	}
}

func TestLayersAreMerged(t *testing.T) {
	lower := tarOf(t, folder("d"), file("d/a", "a"), file("d/b", "b"), folder("d/sub"), file("d/sub/x", "x"), folder("o"),
		file("o/old", "old"), file("f", "f"), hardlink("g", "f"), symlink("l", "/d"), folder("gone"), file("gone/x", "x"))
	for what, c := range map[string]struct {
		upper []tar.Header
		want  map[string]string
	}{
		"whiteouts":              {[]tar.Header{file("d/.wh.a", ""), file(".wh.gone", "")}, map[string]string{"d/a": "", "d/b": "b", "gone": "", "gone/x": ""}},
		"of this layer not":      {[]tar.Header{file("d/a", "new"), file("d/.wh.a", "")}, map[string]string{"d/a": "new"}},
		"opaque":                 {[]tar.Header{folder("o"), file("o/new", "new"), file("o/.wh..wh..opq", "")}, map[string]string{"o": "/", "o/old": "", "o/new": "new"}},
		"opaque first":           {[]tar.Header{file("o/.wh..wh..opq", ""), file("o/new", "new")}, map[string]string{"o/old": "", "o/new": "new"}},
		"a name of a hard link":  {[]tar.Header{file("f", "new")}, map[string]string{"f": "new", "g": "f"}},
		"a link to below":        {[]tar.Header{hardlink("h", "d/a"), file(".wh.d", "")}, map[string]string{"h": "a", "d": ""}},
		"through a link":         {[]tar.Header{file("l/new", "new")}, map[string]string{"d/new": "new", "l": "→/d"}},
		"whiteouts below a file": {[]tar.Header{file("d", "file"), file("d/.wh.a", ""), file("d/sub/.wh.x", ""), file("no/.wh.x", "")}, map[string]string{"d": "file", "no": ""}},
		"a file for a folder":    {[]tar.Header{file("d", "file")}, map[string]string{"d": "file"}},
		"a folder for a link":    {[]tar.Header{folder("l"), file("l/x", "x")}, map[string]string{"l": "/", "l/x": "x", "d/x": ""}},
		"a folder again":         {[]tar.Header{folder("d")}, map[string]string{"d/a": "a"}},
		"missing folders":        {[]tar.Header{file("p/q/r", "r")}, map[string]string{"p/q/r": "r", "p": "/"}},
		"aufs":                   {[]tar.Header{file(".wh..wh.plnk", ""), folder(".wh..wh.orph")}, map[string]string{".wh..wh.plnk": ""}},
	} {
		i := layout(t, "gzip", lower, tarOf(t, c.upper...)).must(cache(t))
		t.Run(what, func(t *testing.T) { want(t, i, c.want) })
	}
}

// Digests may be of either algorithm, and of a layer and of what is in it of different ones.
func TestLongDigests(t *testing.T) {
	long := func(data []byte) Digest {
		sum := sha512.Sum512(data)
		return Digest("sha512:" + hex.EncodeToString(sum[:]))
	}
	data := tarOf(t, file("f", noise(1, 2*frameSize)))
	for _, how := range []string{"plain", "gzip"} {
		stored := packed(t, how, data)
		for _, blob := range []Digest{digestOf(stored), long(stored)} {
			for _, id := range []Digest{digestOf(data), long(data)} {
				l := laid{t, t.TempDir()}
				l.write(blobName(blob), stored)
				l.image([]Digest{id}, []any{map[string]any{"digest": blob, "size": len(stored)}})
				want(t, l.must(cache(t)), map[string]string{"f": noise(1, 2*frameSize)})
				source, err := OpenSource(Layout, l.path, "")
				if err != nil {
					t.Fatal(err)
				}
				s := Store{t.TempDir()}
				if err := s.Import(t.Context(), "long", "here", source, func(_, _ int64) {}); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(filepath.Join(s.Path, blobName(blob))); err != nil {
					t.Error(err)
				}
				l.write(blobName(blob), append(stored, 0))
				if _, err := l.load(cache(t)); err == nil || !strings.Contains(err.Error(), string(blob)) && how == "plain" {
					t.Errorf("%s, %s, %s, with a byte more: %v", how, blob, id, err)
				}
				l.image([]Digest{long([]byte("x"))}, []any{map[string]any{"digest": blob, "size": len(stored)}})
				l.write(blobName(blob), stored)
				if _, err := l.load(cache(t)); err == nil || !strings.Contains(err.Error(), "the tar file in it is not sha512:") {
					t.Errorf("%s, %s, of something else: %v", how, blob, err)
				}
			}
		}
	}
}

// Layers are looked into at once, and come in their order all the same; one may be there twice.
func TestManyLayers(t *testing.T) {
	var layers [][]byte
	files := map[string]string{}
	for n := range 24 {
		name, text := fmt.Sprintf("d/%d", n/2), fmt.Sprintf("%d ", n)+noise(int64(n), 100_000)
		layers = append(layers, tarOf(t, folder("d"), file(name, text), file("last", text)))
		files[name], files["last"] = text, text
	}
	layers = append(layers, layers[3], layers[3])
	files["last"] = files["d/1"]
	c := cache(t)
	for range 2 {
		want(t, layout(t, "gzip", layers...).must(c), files)
	}
	layers[20] = []byte("no tar file, of which more than a block is there" + strings.Repeat(".", 1000))
	if _, err := layout(t, "gzip", layers...).load(cache(t)); err == nil || !strings.Contains(err.Error(), "layer 21 of 26") {
		t.Error(err)
	}
}

func TestAttributes(t *testing.T) {
	when := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	i := layout(t, "zstd", tarOf(t,
		tar.Header{
			Typeflag: tar.TypeReg, Name: "f", Linkname: "four", Mode: 0o4751, Uid: 7, Gid: 70000, ModTime: when, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b\x00c", "SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.trusted.overlay.opaque": "y"},
		},
		tar.Header{Typeflag: tar.TypeBlock, Name: "b", Mode: 0o600, Devmajor: 8, Devminor: 300},
		tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600},
		hardlink("g", "f"), folder("d"), folder("d/e"), symlink("s", "target"),
	)).must(cache(t))
	stat := func(name string) (st unix.Stat_t) {
		n, ok := i.lookupPath(name)
		if !ok {
			t.Fatalf("no %s", name)
		}
		i.Stat(n, &st)
		return st
	}
	f := stat("f")
	if f.Mode != unix.S_IFREG|0o4751 || f.Uid != 7 || f.Gid != 70000 || f.Size != 4 || f.Nlink != 2 || f.Mtim != (unix.Timespec{Sec: when.Unix(), Nsec: 789}) {
		t.Errorf("%+v", f)
	}
	if b := stat("b"); b.Mode != unix.S_IFBLK|0o600 || b.Rdev != unix.Mkdev(8, 300) {
		t.Errorf("%+v", b)
	}
	if p, s, d := stat("p"), stat("s"), stat("d"); p.Mode != unix.S_IFIFO|0o600 || s.Size != 6 || s.Mode != unix.S_IFLNK|0o777 || d.Nlink != 3 {
		t.Errorf("%+v, %+v, %+v", p, s, d)
	}
	n, _ := i.lookupPath("g")
	if v, ok := i.Xattr(n, "user.a"); !ok || v != "b\x00c" || len(i.Xattrs(n)) != 1 {
		t.Errorf("%q, %q", v, i.Xattrs(n))
	}
}

// A sparse file, as GNU tar writes it, format 1.0: a map in front of the data.
func TestSparse(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := make([]byte, 512)
	copy(data, "1\n1048576\n4\n")
	data = append(data, "data"...)
	// package tar does not write these records, so a record of the same length stands for each.
	h := tar.Header{
		Typeflag: tar.TypeReg, Name: "f", Size: int64(len(data)), Mode: 0o644, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": "big", "XXX.sparse.realsize": "2097152"},
	}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(data)
	_ = w.Close()
	content := make([]byte, 2<<20)
	copy(content[1<<20:], "data")
	for _, how := range []string{"plain", "gzip"} {
		i := layout(t, how, bytes.ReplaceAll(b.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))).must(cache(t))
		want(t, i, map[string]string{"big": string(content)})
		n, _ := i.lookupPath("big")
		f, err := i.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > 128<<10 {
			t.Errorf("it takes %d blocks, %v", st.Blocks, err)
		}
	}
}

func TestArchives(t *testing.T) {
	data := tarOf(t, file("f", "content"))
	l := layout(t, "gzip", data)
	var members []tar.Header
	err := filepath.WalkDir(l.path, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(l.path, path) // it is below
		members = append(members, file(name, string(text)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	config := string(l.json(map[string]any{"rootfs": map[string]any{"diff_ids": []Digest{digestOf(data), digestOf(data)}}}))
	l.write("oci.tar", tarOf(t, members...))
	l.write("docker.tar", tarOf(t, file("c.json", config), file("1/layer.tar", string(data)), symlink("2/layer.tar", "../1/layer.tar"),
		file("manifest.json", `[{"Config":"c.json","RepoTags":["example.com/tools:1"],"Layers":["1/layer.tar","2/layer.tar"]}]`)))
	for _, c := range [][3]string{
		{Archive, "oci.tar", ""}, {Archive, "oci.tar", "latest"}, {DockerArchive, "docker.tar", ""}, {DockerArchive, "docker.tar", "tools:1"},
	} {
		i, err := Load(c[0], filepath.Join(l.path, c[1]), c[2], OpenAsUs, cache(t))
		if err != nil {
			t.Errorf("%q: %v", c, err)
			continue
		}
		want(t, i, map[string]string{"f": "content"})
		_ = i.Close()
		// The same, imported.
		s := Store{t.TempDir()}
		source, err := OpenSource(c[0], filepath.Join(l.path, c[1]), c[2])
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Import(context.Background(), "x", "", source, silent); err != nil {
			t.Fatal(err)
		}
		_ = source.Close()
		if i, err = Load(Layout, s.Path, "x", OpenAsUs, cache(t)); err != nil {
			t.Fatal(err)
		}
		want(t, i, map[string]string{"f": "content"})
		_ = i.Close()
	}
	for _, c := range [][3]string{{Archive, "docker.tar", ""}, {DockerArchive, "oci.tar", ""}, {Archive, "oci.tar", "1"}, {DockerArchive, "docker.tar", "ools:1"}} {
		if _, err := Load(c[0], filepath.Join(l.path, c[1]), c[2], OpenAsUs, cache(t)); err == nil {
			t.Errorf("%q is no error", c)
		}
	}
}

func TestChoice(t *testing.T) {
	for text, want := range map[string]string{
		`{"manifests":[]}`:                                                              "no image for linux/",
		`{"manifests":[{"digest":"x"}]}`:                                                "no sha256 or sha512 digest",
		`{"manifests":[{"digest":"sha256:../../x"}]}`:                                   "no sha256 or sha512 digest",
		`{"manifests":[{"digest":"a"},{"digest":"b"}]}`:                                 "several images",
		`{"manifests":[{"digest":"a","platform":{"os":"plan9","architecture":"386"}}]}`: "no image for linux/",
		`[]`: "manifest",
	} {
		l := laid{t, t.TempDir()}
		l.write("index.json", []byte(text))
		if _, err := l.load(cache(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
