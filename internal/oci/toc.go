package oci

import (
	"archive/tar"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Annotations of a layer that brings its own table of contents: as containers-storage writes it for zstd:chunked, and as eStargz has it
// (github.com/containerd/stargz-snapshotter, docs/estargz.md).
const (
	chunkedDigest   = "io.github.containers.zstd-chunked.manifest-checksum"
	chunkedPosition = "io.github.containers.zstd-chunked.manifest-position"
	stargzDigest    = "containerd.io/snapshot/stargz/toc.digest"
	stargzName      = "stargz.index.json" // that it has in the layer's tar file
)

const (
	maxTOC  = 150 << 20 // bytes of a table of contents: what containers-storage allows
	maxSkip = 16 << 20  // bytes before a file that are to be decompressed with it
)

// toc is what the manifest says of a layer's table of contents.
type toc struct {
	digest       Digest
	at, size     int64 // where it is, compressed, which is what the digest is of;
	atTheEndSays bool  // or the end of the layer says where it is, and the digest is of the text
}

// errTOC is about a table of contents that cannot be used. Its layer can.
var errTOC = errors.New("its table of contents is of no use")

// toc returns what there is to know of the table of contents of a layer; nil: it has none.
func (d *descriptor) toc() *toc {
	t := &toc{digest: Digest(d.Annotations[stargzDigest]), atTheEndSays: true}
	if digest := d.Annotations[chunkedDigest]; digest != "" {
		var numbers [4]int64 // offset, length, length of the text, format
		words := strings.Split(d.Annotations[chunkedPosition], ":")
		if len(words) != len(numbers) {
			return nil
		}
		for n, word := range words {
			var err error
			if numbers[n], err = strconv.ParseInt(word, 10, 64); err != nil {
				return nil
			}
		}
		if numbers[3] != 1 {
			return nil
		}
		t = &toc{digest: Digest(digest), at: numbers[0], size: numbers[1]}
	}
	if t.digest.check() != nil {
		return nil
	}
	return t
}

// read makes the index of a layer of its table of contents, which is compared with its digest. Errors: errTOC.
func (t *toc) read(b *blob, left *budget) (x *index, err error) {
	x = &index{inPlace: true}
	defer func() {
		if err != nil {
			left.give(x)
			x, err = nil, fmt.Errorf("%w: %w", errTOC, err)
		}
	}()
	at, size := t.at, t.size
	if t.atTheEndSays {
		if at, err = stargzTOC(b); err != nil {
			return x, err
		}
		size = b.size - at
	}
	if at < 0 || size < 0 || size > maxTOC || at > b.size-size {
		return x, fmt.Errorf("it is to have %d bytes at %d of %d", size, at, b.size)
	}
	sum := t.digest.sum()
	text := func(r io.Reader) error { return x.list(&counter{Reader: r, max: maxTOC}, b.size, left) }
	if t.atTheEndSays {
		err = stargzText(io.NewSectionReader(b, at, size), func(r io.Reader) error { return tee(r, into(sum), text) })
	} else {
		err = tee(io.NewSectionReader(b, at, size), into(sum), func(r io.Reader) error { return decompressed(r, text) })
	}
	if err != nil {
		return x, err
	}
	return x, t.digest.compare(sum)
}

func decompressed(r io.Reader, read func(io.Reader) error) error {
	plain, _, err := decompress(r, readSize)
	if err != nil {
		return err
	}
	defer plain.Close()
	return read(plain)
}

// stargzTOC finds where the table of contents of an eStargz layer begins: its end, an empty gzip file, says so in an extra field
// of its header.
func stargzTOC(b *blob) (int64, error) {
	const (
		size   = 51
		digits = 16
		field  = digits + len("STARGZ")
	)
	end := make([]byte, size)
	if _, err := b.ReadAt(end, b.size-size); err != nil {
		return 0, err
	}
	extra := end[10:] // after the fixed part of the header
	if int(binary.LittleEndian.Uint16(extra)) != 4+field || string(extra[2:4]) != "SG" || string(extra[6+digits:6+field]) != "STARGZ" {
		return 0, errors.New("its end is not that of an eStargz layer")
	}
	return strconv.ParseInt(string(extra[6:6+digits]), 16, 64)
}

// stargzText reads a table of contents: the only file of a tar file.
func stargzText(r io.Reader, read func(io.Reader) error) error {
	return decompressed(r, func(plain io.Reader) error {
		in := tar.NewReader(&counter{Reader: plain, max: maxTOC})
		h, err := in.Next()
		if err != nil {
			return err
		}
		if h.Name != stargzName {
			return fmt.Errorf("it is called %.100q", h.Name)
		}
		return read(in)
	})
}

// tocEntry is one of a table of contents, which both formats have from CRFS. A file that is in several chunks is followed by entries for
// these, which matter to who would read it from its middle: the chunks follow each other, as the layer is a tar file as well.
type tocEntry struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	Size        int64             `json:"size"`
	UID         int               `json:"uid"`
	GID         int               `json:"gid"`
	ModTime     time.Time         `json:"modtime"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`      // of the content
	Offset      int64             `json:"offset"`      // in the layer, of where what is compressed by itself begins
	InnerOffset int64             `json:"innerOffset"` // in that, of the content
}

var tocTypes = map[string]byte{
	"reg": tar.TypeReg, "dir": tar.TypeDir, "symlink": tar.TypeSymlink, "hardlink": tar.TypeLink, "char": tar.TypeChar, "block": tar.TypeBlock,
	"fifo": tar.TypeFifo,
}

// list reads the text of a table of contents of a layer that has size bytes.
func (x *index) list(r io.Reader, size int64, left *budget) error {
	d := json.NewDecoder(r)
	total := int64(0)
	if err := delimiter(d, '{'); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if key != "entries" {
			var other json.RawMessage
			if err := d.Decode(&other); err != nil {
				return err
			}
			if key == "version" && string(other) != "1" {
				return fmt.Errorf("it is of version %.100s", other)
			}
			continue
		}
		if err := delimiter(d, '['); err != nil {
			return err
		}
		for d.More() {
			var t tocEntry
			if err := d.Decode(&t); err != nil {
				return fmt.Errorf("after %d entries: %w", len(x.entries), err)
			}
			if t.Type == "chunk" {
				continue
			}
			e, err := t.entry(size)
			if err != nil {
				return err
			}
			x.entries = append(x.entries, e)
			if err := left.take(&e); err != nil {
				return err
			}
			if total += e.size; total > unpackedLimit(size) {
				return fmt.Errorf("its files have more than %d bytes, with %q", unpackedLimit(size), e.name)
			}
		}
		if err := delimiter(d, ']'); err != nil {
			return err
		}
	}
	return delimiter(d, '}')
}

// delimiter reads one.
func delimiter(d *json.Decoder, want json.Delim) error {
	token, err := d.Token()
	if err == nil && token != want {
		err = fmt.Errorf("%v in place of %v", token, want)
	}
	return err
}

// entry takes of an entry what matters, with the same rules as for a tar file's.
func (t *tocEntry) entry(size int64) (entry, error) {
	h := &tar.Header{
		Typeflag: tocTypes[t.Type], Name: t.Name, Linkname: t.LinkName, Mode: t.Mode, Size: t.Size, Uid: t.UID, Gid: t.GID,
		ModTime: t.ModTime, Devmajor: t.DevMajor, Devminor: t.DevMinor,
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(0, 0)
	}
	if h.Typeflag == 0 {
		return entry{}, fmt.Errorf("%.100q is of a type that is not known, %.100q", t.Name, t.Type)
	}
	if len(t.Xattrs) > 0 {
		h.PAXRecords = make(map[string]string, len(t.Xattrs))
		for name, value := range t.Xattrs {
			h.PAXRecords[xattrRecord+name] = string(value)
		}
	}
	e, err := newEntry(h, 0)
	if err != nil || e.mode&unix.S_IFMT != unix.S_IFREG || e.size == 0 {
		return e, err
	}
	if e.size < 0 || e.size > maxBytes || t.Offset < 0 || t.Offset >= size || t.InnerOffset < 0 || t.InnerOffset > maxSkip {
		return e, fmt.Errorf("%.100q is to have %d bytes, %d after what begins at %d of %d", t.Name, e.size, t.InnerOffset, t.Offset, size)
	}
	digits, ok := strings.CutPrefix(t.Digest, "sha256:")
	if n, err := hex.Decode(e.digest[:], []byte(digits[:min(len(digits), 2*len(e.digest))])); !ok || err != nil || n != len(e.digest) || len(digits) != 2*n {
		return e, fmt.Errorf("the digest of %.100q is %.100q", t.Name, t.Digest)
	}
	e.at, e.skip = t.Offset, t.InnerOffset
	return e, nil
}
