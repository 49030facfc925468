package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// inPlace says which layers are read by their tables of contents.
func (i *Image) inPlace() string {
	is := ""
	for _, c := range i.layers {
		is += map[bool]string{true: "x", false: "-"}[c.inPlace]
	}
	return is
}

// one makes a layout of one layer, whose table of contents and descriptor are changed.
func one(t testing.TB, how string, data []byte, toc func(list []map[string]any) any, change func(d map[string]any)) laid {
	t.Helper()
	l := laid{t, t.TempDir()}
	d, id := l.layer(how, data, toc)
	if change != nil {
		change(d)
	}
	l.image([]Digest{id}, []any{d})
	return l
}

// Of a layer with a table of contents nothing else is read, and nothing is copied.
func TestTableOfContents(t *testing.T) {
	for _, how := range []string{"chunked", "stargz"} {
		l := layout(t, how, tarOf(t, folder("d"), file("d/a", noise(1, 250_000)), hardlink("d/b", "d/a"), file("gone", "gone")), tarOf(t, file(".wh.gone", ""), file("c", "c")))
		c := cache(t)
		for range 2 {
			i := l.must(c)
			if i.inPlace() != "xx" {
				t.Errorf("%s: %s", how, i.inPlace())
			}
			want(t, i, map[string]string{"d/a": noise(1, 250_000), "d/b": noise(1, 250_000), "gone": "", "c": "c"})
		}
		for _, name := range c.names(t, "layers") {
			if !strings.HasSuffix(name, ".index") {
				t.Errorf("%s: the cache has %s", how, name)
			}
		}
		// The same, imported.
		s := Store{t.TempDir()}
		if err := s.Import(t.Context(), "x", "", l.source(), silent); err != nil {
			t.Fatal(err)
		}
		i, err := Load(Layout, s.Path, "x", OpenAsUs, cache(t))
		if err != nil {
			t.Fatal(err)
		}
		if i.inPlace() != "xx" {
			t.Errorf("%s, imported: %s", how, i.inPlace())
		}
		want(t, i, map[string]string{"d/a": noise(1, 250_000), "c": "c"})
		_ = i.Close()
	}
}

// A table of contents that is of no use is as good as none: its layer is read as a whole.
func TestTablesOfNoUse(t *testing.T) {
	data, c := tarOf(t, file("a", "a"), file("b", noise(1, 250_000))), cache(t)
	notes := func(how, name, value string) func(map[string]any) {
		return func(d map[string]any) {
			if how == "chunked" == strings.Contains(name, "chunked") {
				d["annotations"].(map[string]string)[name] = value
			} else {
				delete(d, "annotations")
			}
		}
	}
	position := func(value string) func(how string) func(map[string]any) {
		return func(how string) func(map[string]any) { return notes(how, chunkedPosition, value) }
	}
	for what, change := range map[string]func(how string) func(map[string]any){
		"another digest": func(how string) func(map[string]any) {
			return func(d map[string]any) {
				for name := range d["annotations"].(map[string]string) {
					if name != chunkedPosition {
						d["annotations"].(map[string]string)[name] = string(digestOf(data))
					}
				}
			}
		},
		"no digest":        func(how string) func(map[string]any) { return notes(how, chunkedDigest, "sha256:x") },
		"no stargz digest": func(how string) func(map[string]any) { return notes(how, stargzDigest, "../x") },
		"no numbers":       position("a:b:c:1"),
		"fewer numbers":    position("1:2:3"),
		"negative numbers": position("-1:-1:-1:1"),
		"a large number":   position("9223372036854775807:9223372036854775807:1:1"),
		"behind the end":   position("1000000000:10:10:1"),
		"too long":         position(fmt.Sprintf("0:%d:1:1", maxTOC+1)),
		"another format":   position("0:10:10:2"),
		"another size":     func(string) func(map[string]any) { return func(d map[string]any) { d["size"] = 5 } },
	} {
		for _, how := range []string{"chunked", "stargz"} {
			i := one(t, how, data, nil, change(how)).must(c)
			if i.inPlace() != "-" {
				t.Errorf("%s, %s: it is used", how, what)
			}
			want(t, i, map[string]string{"a": "a", "b": noise(1, 250_000)})
		}
	}
	set := func(name string, value any) func([]map[string]any) any {
		return func(list []map[string]any) any {
			list[1][name] = value
			return map[string]any{"entries": list}
		}
	}
	for what, change := range map[string]func(list []map[string]any) any{
		"no object":            func([]map[string]any) any { return []int{1} },
		"nothing":              func([]map[string]any) any { return nil },
		"no list":              func([]map[string]any) any { return map[string]any{"entries": 5} },
		"a list of others":     func([]map[string]any) any { return map[string]any{"entries": []any{[]int{1}}} },
		"version 2":            func(list []map[string]any) any { return map[string]any{"version": 2, "entries": list} },
		"a negative size":      set("size", -1),
		"a size too large":     set("size", int64(maxBytes)),
		"a fraction of a byte": set("size", 1.5),
		"a number too large":   set("size", 1e30),
		"a negative offset":    set("offset", -1),
		"an offset behind":     set("offset", 1<<40),
		"negative inside":      set("innerOffset", -1),
		"too far inside":       set("innerOffset", int64(1<<50)),
		"no digest":            set("digest", nil),
		"another digest":       set("digest", "sha512:"+strings.Repeat("0", 128)),
		"a digest too long":    set("digest", "sha256:"+strings.Repeat("0", 66)),
		"a digest too short":   set("digest", "sha256:"+strings.Repeat("0", 62)),
		"no digits":            set("digest", "sha256:"+strings.Repeat("x", 64)),
		"another type":         set("type", "directory"),
		"an owner":             set("uid", -1),
		"no time":              set("modtime", "yesterday"),
		"attributes":           set("xattrs", map[string]string{"user.a": "no base64"}),
	} {
		for _, how := range []string{"chunked", "stargz"} {
			i := one(t, how, data, change, nil).must(c)
			if i.inPlace() != "-" {
				t.Errorf("%s, %s: it is used", how, what)
			}
			want(t, i, map[string]string{"a": "a", "b": noise(1, 250_000)})
		}
	}
}

// So is one that would take too much memory.
func TestLongTables(t *testing.T) {
	for what, c := range map[string]struct {
		entries int
		entry   string
	}{
		"entries": {maxEntries, `{"name":"a","type":"dir"}`},
		"text":    {20, `{"name":"a","type":"dir"}` + strings.Repeat(" ", maxTOC/20)},
	} {
		i := one(t, "chunked", tarOf(t, file("a", "a")), func([]map[string]any) any {
			return slices.Concat([]byte(`{"entries":[`), bytes.Repeat([]byte(c.entry+","), c.entries), []byte(c.entry+"]}"))
		}, nil).must(cache(t))
		if i.inPlace() != "-" {
			t.Errorf("%s: it is used", what)
		}
		want(t, i, map[string]string{"a": "a"})
	}
}

// What is damaged of a layer, or is not where its table of contents says, is an error, and the rest is as it should be.
func TestDamagedLayers(t *testing.T) {
	data := tarOf(t, file("a", "first"), file("b", noise(1, 250_000)), file("c", "third"))
	all := map[string]string{"a": "first", "b": noise(1, 250_000), "c": "third"}
	opens := func(i *Image) (bad string) {
		for name, content := range all {
			n, _ := i.lookupPath(name)
			f, err := i.Open(n)
			if err != nil {
				if !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), fmt.Sprintf("%q of layer 1: it is damaged", name)) {
					t.Error(err)
				}
				bad += name
				continue
			}
			got, err := io.ReadAll(f)
			_ = f.Close()
			if err != nil || string(got) != content {
				t.Errorf("%s is wrong, %v", name, err)
			}
		}
		return bad
	}
	for _, how := range []string{"chunked", "stargz"} {
		l := one(t, how, data, nil, nil)
		stored := l.stored()
		at := bytes.Index(stored, []byte(noise(1, 250_000)[:100])) // which does not compress
		if at < 0 {
			t.Fatal("the content is not to be found")
		}
		for what, damage := range map[string]func(b []byte) []byte{
			"a bit":       func(b []byte) []byte { b[at+1000] ^= 4; return b },
			"zeros":       func(b []byte) []byte { clear(b[at-3 : at+10_000]); return b },
			"other bytes": func(b []byte) []byte { copy(b[at:], noise(2, 10_000)); return b },
		} {
			l.write(l.blobName(), damage(bytes.Clone(stored)))
			i := l.must(cache(t))
			if bad := opens(i); bad != "b" || i.inPlace() != "x" {
				t.Errorf("%s, %s: %q is damaged", how, what, bad)
			}
			l.write(l.blobName(), stored)
			if bad := opens(i); bad != "" {
				t.Errorf("%s, %s, mended: %q is damaged", how, what, bad)
			}
		}
		// While it is open, it becomes shorter.
		i := l.must(cache(t))
		if err := os.Truncate(filepath.Join(l.path, l.blobName()), int64(at)); err != nil {
			t.Fatal(err)
		}
		if bad := opens(i); !strings.Contains(bad, "b") || strings.Contains(bad, "a") {
			t.Errorf("%s, cut short: %q is damaged", how, bad)
		}
		for what, change := range map[string]func(list []map[string]any){
			"where another is":  func(list []map[string]any) { list[2]["offset"] = list[0]["offset"] },
			"between":           func(list []map[string]any) { list[2]["offset"] = list[2]["offset"].(int) + 1 },
			"far inside":        func(list []map[string]any) { list[2]["innerOffset"] = maxSkip },
			"longer":            func(list []map[string]any) { list[2]["size"] = 5000 },
			"shorter":           func(list []map[string]any) { list[2]["size"] = 4 },
			"with other digest": func(list []map[string]any) { list[2]["digest"] = digestOf(nil) },
		} {
			i := one(t, how, tarOf(t, file("a", "first"), file("x", "x"), file("c", "third")), func(list []map[string]any) any {
				change(list)
				return map[string]any{"entries": list}
			}, nil).must(cache(t))
			all = map[string]string{"a": "first", "x": "x", "c": "third"}
			if bad := opens(i); bad != "c" || i.inPlace() != "x" {
				t.Errorf("%s, %s: %q is damaged", how, what, bad)
			}
		}
		all = map[string]string{"a": "first", "b": noise(1, 250_000), "c": "third"}
	}
}

// blobName is the name of the largest blob, and stored what is in it.
func (l laid) blobName() (name string) {
	l.t.Helper()
	largest := int64(-1)
	paths, _ := filepath.Glob(filepath.Join(l.path, "blobs/*/*")) // the pattern is one
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			l.t.Fatal(err)
		}
		if info.Size() > largest {
			largest, name = info.Size(), strings.TrimPrefix(path, l.path)
		}
	}
	return name
}

func (l laid) stored() []byte {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.path, l.blobName()))
	if err != nil {
		l.t.Fatal(err)
	}
	return data
}

// An image that says that it has the layer of another one, with another table of contents, changes nothing for that one.
func TestTableOfAnotherImage(t *testing.T) {
	data := tarOf(t, file("a", "good"))
	for _, how := range []string{"chunked", "stargz", "zstd"} {
		honest := one(t, how, data, nil, nil)
		d, id := honest.layer(how, data, nil)
		for _, with := range []string{"chunked", "stargz"} {
			evil, notes := listed(t, with, tarOf(t, file("a", "evil")), nil)
			l := laid{t, t.TempDir()}
			l.write(blobName(d["digest"].(Digest)), evil)
			l.image([]Digest{id}, []any{map[string]any{"digest": d["digest"], "size": len(evil), "annotations": notes}})
			c := cache(t)
			want(t, l.must(c), map[string]string{"a": "evil"}) // it is its own affair
			want(t, honest.must(c), map[string]string{"a": "good"})
		}
	}
}

// Several files may be in one piece that is compressed, as eStargz has them with a minimal size of chunks.
func TestInnerOffsets(t *testing.T) {
	data := tarOf(t, file("a", "first"), file("b", "second"))
	inner := func(how string) laid {
		return one(t, how, data, func(list []map[string]any) any {
			list[1]["offset"], list[1]["innerOffset"] = list[0]["offset"], bytes.Index(data, []byte("second"))-bytes.Index(data, []byte("first"))
			return map[string]any{"entries": list}
		}, nil)
	}
	for _, how := range []string{"chunked", "stargz"} {
		i := inner(how).must(cache(t))
		want(t, i, map[string]string{"a": "first", "b": "second"})
		if i.inPlace() != "x" {
			t.Error("it is not used")
		}
	}
}

// A table of contents of any bytes is an error or a tree that holds together.
func FuzzTableOfContents(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"type":"dir","name":"d","mode":493,"modtime":"2001-02-03T04:05:06.789Z"},
		{"type":"reg","name":"d/a","size":1,"offset":5,"innerOffset":2,"digest":"sha256:` + strings.Repeat("0a", 32) + `","xattrs":{"user.a":"YQ=="}},
		{"type":"chunk","name":"d/a","offset":9,"chunkOffset":7},{"type":"hardlink","name":"h","linkName":"d/a"},{"type":"reg","name":"d/.wh.a"}]}`))
	f.Add([]byte(`{"entries":[{"type":"char","name":"../c","devMajor":1,"devMinor":3}],"tarSplitDigest":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x := &index{inPlace: true}
		if x.list(bytes.NewReader(data), 1<<20, newBudget(1000, 1<<20)) != nil {
			return
		}
		for _, e := range x.entries {
			if e.kind == tar.TypeReg && (e.size < 0 || e.size > unpackedLimit(1<<20) || e.at < 0 || e.at >= 1<<20 || e.skip < 0 || e.skip > maxSkip) {
				t.Errorf("%+v", e)
			}
		}
		again, err := decodeIndex(x.encode())
		if err != nil || !again.inPlace || len(again.entries) != len(x.entries) {
			t.Errorf("%+v is read back as %+v, %v", x, again, err)
		}
		b := newBuilder()
		if b.apply(x) == nil {
			b.finish()
			whole(t, b)
		}
	})
}

// What the end of a layer of any bytes says is an error, or a place.
func FuzzStargz(f *testing.F) {
	stored, notes := listed(f, "stargz", tarOf(f, file("a", "a")), nil)
	f.Add(stored)
	f.Add(stored[len(stored)-51:])
	t := (&descriptor{Annotations: notes}).toc()
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = t.read(&blob{ReaderAt: bytes.NewReader(data), size: int64(len(data))}, newBudget(1000, 1<<20))
	})
}
