package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bomb is a gzip file of zeros behind a header.
func bomb(t *testing.T, header []byte, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.DefaultCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(header)
	_, _ = io.CopyN(w, zeroReader{}, size)
	_ = w.Close()
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// header is one entry's header alone, which promises size bytes.
func header(t *testing.T, h tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// attribute makes a file with a PAX record.
func attribute(name, value string) tar.Header {
	h := file("a", "")
	h.PAXRecords = map[string]string{name: value}
	return h
}

// many returns headers.
func many(n int, f func(int) tar.Header) (list []tar.Header) {
	for i := range n {
		list = append(list, f(i))
	}
	return list
}

// hostileLayers are layers that are refused, with what the error says.
func hostileLayers(t *testing.T) map[string]struct {
	layers [][]byte
	want   string
} {
	one := func(want string, h ...tar.Header) struct {
		layers [][]byte
		want   string
	} {
		return struct {
			layers [][]byte
			want   string
		}{[][]byte{tarOf(t, h...)}, want}
	}
	raw := func(want string, data ...[]byte) struct {
		layers [][]byte
		want   string
	} {
		return struct {
			layers [][]byte
			want   string
		}{data, want}
	}
	good := tarOf(t, file("a", "a"))
	deep := strings.Repeat("d/", unix.PathMax/2-10)
	return map[string]struct {
		layers [][]byte
		want   string
	}{
		"upwards":                      one("leads upwards", file("../../etc/passwd", "x")),
		"upwards in the middle":        one("leads upwards", file("a/../../x", "x")),
		"upwards at the end":           one("leads upwards", folder("a/..")),
		"absolute and upwards":         one("leads upwards", file("/../x", "x")),
		"a hard link upwards":          one("leads upwards", hardlink("x", "../../etc/shadow")),
		"a hard link to the host":      one("is not there", hardlink("x", "/etc/shadow")),
		"a hard link through a link":   one("is not there", symlink("e", "/etc"), hardlink("x", "e/shadow")),
		"a hard link to a folder":      one("which is a directory", folder("d"), hardlink("d/x", "d")),
		"a hard link to the root":      one("hard link to the root", hardlink("x", "/")),
		"a hard link to itself":        one("is not there", hardlink("x", "x")),
		"hard links in a circle":       one("is not there", hardlink("x", "y"), hardlink("y", "x")),
		"links in a circle":            one("symbolic links on the way", symlink("a", "b"), symlink("b", "a"), file("a/x", "x")),
		"a link to itself":             one("symbolic links on the way", symlink("a", "a/a"), file("a/x", "x")),
		"a file on the way":            one("no directory", file("a", "x"), file("a/b", "x")),
		"a device on the way":          one("no directory", tar.Header{Typeflag: tar.TypeChar, Name: "a"}, file("a/b", "x")),
		"the root as a file":           one("the root", tar.Header{Typeflag: tar.TypeFifo, Name: "."}),
		"the root as a link":           one("the root", symlink(".", "/etc")),
		"a whiteout of nothing":        one("whiteout", file("d/.wh.", "")),
		"a whiteout of .":              one("whiteout", file(".wh..", "")),
		"a whiteout of ..":             one("", file(".wh...", "")),
		"a name that is too long":      one("too long", file(strings.Repeat("n", 256), "x")),
		"a path that is too long":      one("is no name", file(strings.Repeat("n/", unix.PathMax)+"n", "x")),
		"too deep":                     one("deep", symlink("l", deep), file(deep+"x", "x"), file("l/"+deep+"x", "x")),
		"a link to nowhere":            one("leads nowhere", symlink("a", "")),
		"a link that is too long":      one("leads nowhere", symlink("a", strings.Repeat("x", unix.PathMax))),
		"a device that cannot be":      one("cannot be", tar.Header{Typeflag: tar.TypeBlock, Name: "a", Devmajor: 1 << 12}),
		"an owner that cannot be":      one("cannot be", tar.Header{Typeflag: tar.TypeReg, Name: "a", Uid: 1<<32 - 1}),
		"a type that cannot be":        one("type that is not known", tar.Header{Typeflag: 'Z', Name: "a"}),
		"an attribute without a type":  one("attribute", attribute("SCHILY.xattr.x", "y")),
		"an attribute too long":        one("attribute", attribute("SCHILY.xattr.user.x", strings.Repeat("x", 65<<10))),
		"an attribute's name too long": one("attribute", attribute("SCHILY.xattr.user."+strings.Repeat("x", 256), "y")),
		"no tar file":                  raw("tar", []byte(strings.Repeat("no tar file", 100))),
		"cut short":                    raw("unexpected EOF", tarOf(t, file("a", strings.Repeat("x", 5000)))[:2000]),
		"a header cut short":           raw("unexpected EOF", append(bytes.Clone(good[:1024]), good[:300]...)),
		"a wrong checksum":             raw("header", bytes.Replace(good, []byte("ustar"), []byte("uStar"), 1)),
		"more than it can be":          raw("more than", header(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: maxBytes + 1})),
		"less than it says":            raw("unexpected EOF", header(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1 << 30})),
		"the second layer":             raw("layer 2 of 2", good, tarOf(t, file("../x", "x"))),
	}
}

func TestHostileLayers(t *testing.T) {
	for what, c := range hostileLayers(t) {
		t.Run(what, func(t *testing.T) {
			refused(t, layout(t, "gzip", c.layers...), c.want)
			if slices.ContainsFunc(c.layers, unreadable) {
				return // which a table of contents cannot be
			}
			for _, how := range []string{"chunked", "stargz"} {
				refused(t, layout(t, how, c.layers...), c.want)
			}
		})
	}
}

// unreadable says whether a tar file cannot be read to its end.
func unreadable(data []byte) bool {
	r := tar.NewReader(bytes.NewReader(data))
	for {
		if _, err := r.Next(); err != nil {
			return err != io.EOF
		}
	}
}

// refused wants an image not to be opened, nothing to be kept of it but layers that are as they should be, and the error not
// to be long.
func refused(t *testing.T, l laid, want string) {
	t.Helper()
	start := time.Now()
	_, err := l.load(cache(t))
	if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
		t.Errorf("%v, want %q", err, want)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}

// Whiteouts that are said again and again cost nothing more.
func TestManyWhiteouts(t *testing.T) {
	names := many(5000, func(n int) tar.Header { return file(fmt.Sprint("d/e/", n), "") })
	start := time.Now()
	i := layout(t, "gzip", tarOf(t, append(slices.Clone(names), file("d/old", "old"))...), tarOf(t, append(names,
		many(5000, func(n int) tar.Header { return file([]string{"d/.wh..wh..opq", ".wh.d", "d/.wh.e"}[n%3], "") })...)...)).must(cache(t))
	want(t, i, map[string]string{"d/old": "", "d/e": "/"})
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}

// Links that lead out lead nowhere but into the image.
func TestLinksStayInside(t *testing.T) {
	i := layout(t, "plain", tarOf(t,
		symlink("etc", "/../../../../srv"), symlink("abs", "/tmp"), symlink("up", "../.."), file("etc/x", "x"), file("abs/y", "y"), file("up/z", "z"),
		symlink("passwd", "/proc/self/root/etc/passwd"))).must(cache(t))
	want(t, i, map[string]string{"srv/x": "x", "tmp/y": "y", "z": "z", "passwd": "→/proc/self/root/etc/passwd"})
	if _, err := i.ReadFile("/passwd", 1<<20); err == nil {
		t.Error("a file of the host was read")
	}
}

// Images whose layers are as they should be, while the rest lies.
func TestHostileImages(t *testing.T) {
	good := tarOf(t, file("a", "a"))
	id := digestOf(good)
	other := digestOf([]byte("other"))
	for what, c := range map[string]struct {
		make func(l laid)
		want string
	}{
		"a layer with another digest": {func(l laid) {
			d := l.blob(good)
			l.write(blobName(d["digest"].(Digest)), tarOf(t, file("a", "b")))
			l.image([]Digest{id}, []any{d})
		}, "its digest is not"},
		"another tar file in the layer": {func(l laid) { l.image([]Digest{other}, []any{l.blob(good)}) }, "the digest of the tar file"},
		"bytes after a layer": {func(l laid) {
			l.image([]Digest{id}, []any{l.blob(append(bytes.Clone(good), 1))})
		}, "the digest of the tar file"},
		"a layer that is not there": {func(l laid) { l.image([]Digest{id}, []any{map[string]any{"digest": other}}) }, "no such file"},
		"a layer outside":           {func(l laid) { l.image([]Digest{id}, []any{map[string]any{"digest": "sha256:../../../etc/passwd"}}) }, "no sha256 or sha512 digest"},
		"fewer layers":              {func(l laid) { l.image([]Digest{id, id}, []any{l.blob(good)}) }, "layers"},
		"more layers":               {func(l laid) { l.image(nil, []any{l.blob(good)}) }, "layers"},
		"too many layers": {func(l laid) {
			d := l.blob(good)
			l.image(slices.Repeat([]Digest{id}, maxLayers+1), slices.Repeat([]any{d}, maxLayers+1))
		}, "layers"},
		"a diff id that is none": {func(l laid) { l.image([]Digest{"sha256:x"}, []any{l.blob(good)}) }, "no sha256 or sha512 digest"},
		"xz":                     {func(l laid) { l.image([]Digest{id}, []any{l.blob([]byte("\xfd7zXZ\x00xxxxxx"))}) }, "something else than gzip or zstd"},
		"gzip, cut short":        {func(l laid) { z := packed(t, "gzip", good); l.image([]Digest{id}, []any{l.blob(z[:len(z)-9])}) }, "EOF"},
		"gzip, damaged":          {func(l laid) { z := packed(t, "gzip", good); z[len(z)-5] ^= 1; l.image([]Digest{id}, []any{l.blob(z)}) }, "gzip"},
		"zstd, damaged":          {func(l laid) { z := packed(t, "zstd", good); z[len(z)/2] ^= 1; l.image([]Digest{id}, []any{l.blob(z)}) }, ""},
		"zstd with a window of 2 GiB": {func(l laid) {
			l.image([]Digest{id}, []any{l.blob([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8, 0xff, 0xff, 0xff})})
		}, "window"},
		"a gzip bomb": {func(l laid) { l.image([]Digest{id}, []any{l.blob(bomb(t, good, ratioSlack+200<<20))}) }, "unpacks to more"},
		"a bomb of one file": {func(l laid) {
			l.image([]Digest{id}, []any{l.blob(bomb(t, header(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 8 << 30}), ratioSlack+200<<20))})
		}, "unpacks to more"},
		"another configuration": {func(l laid) {
			l.image([]Digest{id}, []any{l.blob(good)})
			entries, err := os.ReadDir(filepath.Join(l.path, "blobs/sha256"))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != id.hex() {
					l.write("blobs/sha256/"+e.Name(), []byte(`{}`))
				}
			}
		}, "its digest is not"},
		"an index that is too long": {func(l laid) { l.write("index.json", make([]byte, maxDocument+1)) }, "more than"},
		"indexes that are too deep": {func(l laid) {
			d := map[string]any{"digest": other}
			for range maxDepth + 2 {
				d = l.blob(l.json(map[string]any{"manifests": []any{d}}))
			}
			l.write("index.json", l.json(map[string]any{"manifests": []any{d}}))
		}, "nested"},
		"an index that is a folder": {func(l laid) { l.write("index.json/x", nil) }, "no regular file"},
		"an index that is a FIFO": {func(l laid) {
			if err := unix.Mkfifo(filepath.Join(l.path, "index.json"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "no regular file"},
		"JSON that is deep": {func(l laid) { l.write("index.json", bytes.Repeat([]byte("["), 1<<20)) }, "depth"},
	} {
		t.Run(what, func(t *testing.T) {
			l := laid{t, t.TempDir()}
			c.make(l)
			refused(t, l, c.want)
		})
	}
}

// What is in the cache counts only as long as it is what it was.
func TestDamagedCache(t *testing.T) {
	l := layout(t, "gzip", tarOf(t, file("a", noise(1, frameSize)), file("b", noise(2, frameSize))))
	c := cache(t)
	l.must(c)
	for _, pattern := range []string{"layers/*.index", "layers/*.data"} {
		names, _ := filepath.Glob(filepath.Join(c.path, pattern)) // the pattern is one
		for n, damage := range []func(b []byte) []byte{
			func(b []byte) []byte { return b[:len(b)/2] },
			func(b []byte) []byte { return nil },
			func(b []byte) []byte { b[len(b)*3/4] ^= 1; return b },
		} {
			data, err := os.ReadFile(names[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(names[0], damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			i := l.must(c)
			if n == 2 && strings.HasSuffix(pattern, "data") {
				// Only who reads it can tell. One of the two is in the damaged part.
				bad := 0
				for _, name := range []string{"a", "b"} {
					at, _ := i.lookupPath(name)
					f, err := i.Open(at)
					if err != nil {
						bad++
						continue
					}
					got, err := io.ReadAll(f)
					_ = f.Close()
					if err != nil || string(got) != noise(int64(at), frameSize) {
						t.Errorf("%s is wrong, %v", name, err)
					}
				}
				if bad == 0 {
					t.Error("nobody has noticed")
				}
				continue
			}
			want(t, i, map[string]string{"a": noise(1, frameSize)})
		}
	}
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`","platform":{"os":"linux"}}]}`), "")
	f.Add([]byte(`{"config":{"digest":"x"},"layers":[{}]}`), "latest")
	f.Add([]byte(`[{"Config":"c","RepoTags":["a:b"],"Layers":["l"]}]`), "b")
	f.Add([]byte(`{"config":{"Env":["A=b"]},"rootfs":{"diff_ids":["sha256:x"]}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, tag string) {
		l := memory{"index.json": data, "manifest.json": data, "c": data}
		for range 2 {
			_, _ = describeOCI(l, tag)
			_, _ = describeDocker(l, tag)
		}
		var m manifest
		if json.Unmarshal(data, &m) == nil {
			if d, err := m.choose(tag, false); err == nil && !d.forHere() {
				t.Errorf("%+v is not for here", d)
			}
		}
		d := description{layers: make([]layer, 1)}
		if d.configure(data) == nil && d.layers[0].diffID.check() != nil {
			t.Errorf("%q is a diff id", d.layers[0].diffID)
		}
	})
}

// memory is files in memory.
type memory map[string][]byte

func (m memory) open(name string) (*blob, error) {
	data, ok := m[name]
	if !ok {
		return nil, os.ErrNotExist
	}
	return &blob{ReaderAt: bytes.NewReader(data), size: int64(len(data))}, nil
}

func (m memory) Close() error { return nil }

func FuzzIndex(f *testing.F) {
	x := &index{
		entries: []entry{{name: "a", link: "b", kind: tar.TypeReg, size: 5, xattrs: []xattr{{"user.a", "b"}}}, {name: "d", kind: tar.TypeDir}},
		frames:  []frame{{0, 0}, {5, 9}},
	}
	text := x.encode()
	f.Add(text[:len(text)-32])
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < len(indexMagic) {
			return
		}
		x, err := parseIndex(data)
		if err != nil {
			return
		}
		again, err := decodeIndex(x.encode())
		if err != nil || len(again.entries) != len(x.entries) || len(again.frames) != len(x.frames) {
			t.Errorf("%+v is read back as %+v, %v", x, again, err)
		}
	})
}

// A layer of any bytes is an error or a tree that holds together.
func FuzzLayer(f *testing.F) {
	f.Add(tarOf(f, file("d/a", "a"), symlink("l", "d"), hardlink("l/h", "d/a"), file("d/.wh.a", "")), []byte(nil))
	f.Add(tarOf(f, folder("d"), file("d/.wh..wh..opq", "")), packed(f, "zstd", tarOf(f, file("x", "x"))))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		b := newBuilder()
		for _, data := range [][]byte{lower, upper} {
			plain, _, err := decompress(bytes.NewReader(data), readSize)
			if err != nil {
				return
			}
			x := &index{}
			left := newBudget(1000, 1<<20)
			err = x.read(&counter{Reader: plain, max: 1 << 22}, left)
			_ = plain.Close()
			if err != nil || b.apply(x) != nil {
				return
			}
		}
		b.finish()
		whole(t, b)
	})
}

// whole checks that what is reached from the root are inodes, with as many links as names.
func whole(t *testing.T, b *builder) {
	t.Helper()
	links := map[uint32]uint32{0: 2}
	var down func(n uint32)
	down = func(n uint32) {
		for _, name := range b.inodes[n].dir.order {
			e := b.inodes[n].dir.byName[name]
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				t.Errorf("a name %q", name)
			}
			links[e.n]++
			if d := b.inodes[e.n].dir; d != nil {
				links[e.n]++
				links[n]++
				if links[e.n] != 2 || d.parent != n {
					t.Errorf("the directory %q is in two places", name)
					continue
				}
				down(e.n)
			}
		}
	}
	down(0)
	for n, count := range links {
		if b.inodes[n].nlink != count {
			t.Errorf("inode %d has %d links, not %d", n, b.inodes[n].nlink, count)
		}
	}
}
