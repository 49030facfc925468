package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// file makes an entry of a layer.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: content}
}

func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

// tarOf makes a tar file. The content of a regular file is its Linkname.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	switch how {
	case "gzip":
		w := gzip.NewWriter(&b)
		_, _ = w.Write(data) // never fails in memory
		_ = w.Close()
	case "zstd":
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(data)
		_ = w.Close()
	default:
		return data
	}
	return b.Bytes()
}

// laid is an image that was written down.
type laid struct {
	t    testing.TB
	path string
}

func (l laid) write(name string, data []byte) {
	l.t.Helper()
	path := filepath.Join(l.path, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// blob writes a blob and returns its descriptor.
func (l laid) blob(data []byte) map[string]any {
	l.t.Helper()
	d := digestOf(data)
	l.write(blobName(d), data)
	return map[string]any{"digest": d, "size": len(data)}
}

func (l laid) json(v any) []byte {
	l.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return data
}

// layout makes a layout directory of layers, tar files.
func layout(t testing.TB, how string, layers ...[]byte) laid {
	t.Helper()
	l := laid{t, t.TempDir()}
	var ids []Digest
	list := []any{}
	for _, data := range layers {
		d, id := l.layer(how, data, nil)
		ids, list = append(ids, id), append(list, d)
	}
	l.image(ids, list)
	return l
}

// layer writes a layer, and returns its descriptor and the digest of what is in it. change changes its table of contents, if it has one.
func (l laid) layer(how string, data []byte, change func(list []map[string]any) any) (d map[string]any, id Digest) {
	l.t.Helper()
	if how != "chunked" && how != "stargz" {
		return l.blob(packed(l.t, how, data)), digestOf(data)
	}
	stored, notes := listed(l.t, how, data, change)
	d = l.blob(stored)
	d["annotations"] = notes
	plain, _, err := decompress(bytes.NewReader(stored), readSize)
	if err == nil {
		data, err = io.ReadAll(plain) // of eStargz, with the table of contents
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return d, digestOf(data)
}

var tocNames = map[byte]string{
	tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink", tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}

// listed compresses a tar file so that a table of contents, at its end, can tell where each file is.
func listed(t testing.TB, how string, data []byte, change func(list []map[string]any) any) (stored []byte, notes map[string]string) {
	t.Helper()
	pack := map[string]string{"chunked": "zstd", "stargz": "gzip"}[how]
	list := []map[string]any{}
	at := 0 // what is before is compressed
	rest := bytes.NewReader(data)
	for r := tar.NewReader(rest); ; {
		h, err := r.Next()
		if err != nil {
			break // the end, or what is no tar file: it has a table of contents all the same
		}
		xattrs := map[string][]byte{}
		for name, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(name, xattrRecord); ok {
				xattrs[name] = []byte(value)
			}
		}
		e := map[string]any{
			"name": h.Name, "type": tocNames[h.Typeflag], "linkName": h.Linkname, "mode": h.Mode, "uid": h.Uid, "gid": h.Gid, "modtime": h.ModTime,
			"devMajor": h.Devmajor, "devMinor": h.Devminor, "xattrs": xattrs, "size": h.Size,
		}
		list = append(list, e)
		content, err := io.ReadAll(r)
		if err != nil || len(content) == 0 {
			continue
		}
		end := len(data) - rest.Len()
		stored = append(stored, packed(t, pack, data[at:end-len(content)])...)
		at = end
		e["digest"] = digestOf(content)
		const chunk = 100_000
		for n := 0; n < len(content); n += chunk {
			if n > 0 {
				e = map[string]any{"type": "chunk", "name": h.Name}
				list = append(list, e)
			}
			part := content[n:min(n+chunk, len(content))]
			e["offset"], e["chunkOffset"], e["chunkSize"], e["chunkDigest"] = len(stored), n, len(part), digestOf(part)
			stored = append(stored, packed(t, pack, part)...)
		}
	}
	stored = append(stored, packed(t, pack, data[at:])...)
	toc := any(map[string]any{"version": 1, "entries": list})
	if change != nil {
		toc = change(list)
	}
	text, ready := toc.([]byte)
	if !ready {
		var err error
		if text, err = json.Marshal(toc); err != nil {
			t.Fatal(err)
		}
	}
	if how == "stargz" {
		at := len(stored)
		stored = append(stored, packed(t, "gzip", tarOf(t, file(stargzName, string(text))))...)
		end := fmt.Appendf([]byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x00"), "%016xSTARGZ", at)
		stored = append(append(stored, end...), "\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"...)
		return stored, map[string]string{stargzDigest: string(digestOf(text))}
	}
	skippable := func(data []byte) {
		stored = append(binary.LittleEndian.AppendUint32(append(stored, "\x50\x2a\x4d\x18"...), uint32(len(data))), data...)
	}
	z := packed(t, "zstd", text)
	position := fmt.Sprintf("%d:%d:%d:1", len(stored)+8, len(z), len(text))
	skippable(z)
	skippable([]byte("what tar-split has"))
	skippable(make([]byte, 64))
	return stored, map[string]string{chunkedDigest: string(digestOf(z)), chunkedPosition: position}
}

// image writes what there is of an image besides its layers.
func (l laid) image(ids []Digest, layers []any) {
	l.t.Helper()
	config := l.blob(l.json(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Env": []string{"PATH=/opt/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	}))
	m := l.blob(l.json(map[string]any{"schemaVersion": 2, "config": config, "layers": layers}))
	m["annotations"] = map[string]string{refName: "latest"}
	l.write("index.json", l.json(map[string]any{"schemaVersion": 2, "manifests": []any{m}}))
}

// cache makes an empty cache.
func cache(t testing.TB) *Cache {
	t.Helper()
	c, err := OpenCache(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// load opens a layout.
func (l laid) load(c *Cache) (*Image, error) {
	l.t.Helper()
	i, err := Load(Layout, l.path, "", OpenAsUs, c)
	if err == nil {
		l.t.Cleanup(func() { _ = i.Close() })
	}
	return i, err
}

func (l laid) must(c *Cache) *Image {
	l.t.Helper()
	i, err := l.load(c)
	if err != nil {
		l.t.Fatal(err)
	}
	return i
}

// want compares files: by path, the content, "→target", "/" for a directory or "" for nothing.
func want(t testing.TB, i *Image, files map[string]string) {
	t.Helper()
	for path, want := range files {
		got := ""
		if n, ok := i.lookupPath(path); ok {
			e := i.inodes[n].entry
			switch {
			case i.inodes[n].dir != nil:
				got = "/"
			case e.kind == tar.TypeSymlink:
				got = "→" + i.Readlink(n)
			case e.kind == tar.TypeReg:
				f, err := i.Open(n)
				if err != nil {
					t.Errorf("%s: %v", path, err)
					continue
				}
				data, err := io.ReadAll(f)
				_ = f.Close()
				if err != nil {
					t.Error(err)
				}
				got = string(data)
			}
		}
		if got != want {
			t.Errorf("%s is %.40q, not %.40q", path, got, want)
		}
	}
}

// lookupPath follows no symbolic link.
func (i *Image) lookupPath(path string) (n uint32, ok bool) {
	parts, err := split(path)
	for _, name := range parts {
		if n, ok = i.Lookup(n, name); !ok {
			return 0, false
		}
	}
	return n, err == nil
}
