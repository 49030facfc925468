package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// entry is one of a layer's tar file. Names are as in there.
type entry struct {
	name, link string
	kind       byte // tar.TypeReg and its like
	mode       uint32
	uid, gid   uint32
	rdev       uint64
	size       int64
	sec        int64 // of the time of modification
	nsec       int32
	at         int64 // where in the tar file its header begins; of an index that is inPlace: where in the layer is what its content is in,
	skip       int64 // and how many bytes, decompressed, come before that
	digest     [sha256.Size]byte
	xattrs     []xattr
}

// names returns how many bytes of names and attributes there are.
func (e *entry) names() int {
	n := len(e.name) + len(e.link)
	for _, a := range e.xattrs {
		n += len(a.name) + len(a.value)
	}
	return n
}

type xattr struct{ name, value string }

// frame is where a piece of the copy of a layer begins.
type frame struct{ plain, packed int64 }

// index is what is known of a layer.
type index struct {
	entries []entry
	frames  []frame // with the end as the last; none: the layer itself is read
	inPlace bool    // by its table of contents; else it is a tar file
}

// indexMagic changes with the format.
const indexMagic = "cntr-attach layer index 4\n"

var errIndex = errors.New("the index is damaged")

// encode makes a text of an index, with its own digest at the end.
func (x *index) encode() []byte {
	b := []byte(indexMagic)
	number := func(n int64) { b = binary.AppendVarint(b, n) }
	text := func(s string) { number(int64(len(s))); b = append(b, s...) }
	number(int64(len(x.entries)))
	number(int64(len(x.frames)))
	inPlace := int64(0)
	if x.inPlace {
		inPlace = 1
	}
	number(inPlace)
	for i := range x.entries {
		e := &x.entries[i]
		text(e.name)
		text(e.link)
		for _, n := range []int64{
			int64(e.kind), int64(e.mode), int64(e.uid), int64(e.gid), int64(e.rdev), e.size, e.sec, int64(e.nsec), e.at, e.skip,
			int64(len(e.xattrs)),
		} {
			number(n)
		}
		for _, a := range e.xattrs {
			text(a.name)
			text(a.value)
		}
		if e.size > 0 {
			b = append(b, e.digest[:]...)
		}
	}
	for _, f := range x.frames {
		number(f.plain)
		number(f.packed)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decoder reads an index. After an error it reads zeros.
type decoder struct {
	data []byte
	text string // the same
	at   int
	bad  bool
}

func (d *decoder) number() int64 {
	n, size := binary.Varint(d.data[d.at:])
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.at += size
	return n
}

func (d *decoder) bytes(n int64) string {
	if n < 0 || n > int64(len(d.data)-d.at) {
		d.bad = true
		return ""
	}
	d.at += int(n)
	return d.text[d.at-int(n) : d.at]
}

// decodeIndex is the reverse of encode.
func decodeIndex(data []byte) (*index, error) {
	end := len(data) - sha256.Size
	if end < len(indexMagic) || !bytes.HasPrefix(data, []byte(indexMagic)) {
		return nil, errIndex
	}
	if sum := sha256.Sum256(data[:end]); !bytes.Equal(sum[:], data[end:]) {
		return nil, errIndex
	}
	return parseIndex(data[:end])
}

func parseIndex(data []byte) (*index, error) {
	d := &decoder{data: data, text: string(data), at: len(indexMagic)}
	entries, frames, inPlace := d.number(), d.number(), d.number()
	// An entry has 13 bytes at least, so the text says how much memory it can be worth.
	if d.bad || entries < 0 || entries > int64(len(data)/13) || frames < 0 || frames > int64(len(data)/2) {
		return nil, errIndex
	}
	x := &index{entries: make([]entry, entries), frames: make([]frame, frames), inPlace: inPlace != 0}
	for i := range x.entries {
		e := &x.entries[i]
		e.name = d.bytes(d.number())
		e.link = d.bytes(d.number())
		e.kind, e.mode, e.uid, e.gid = byte(d.number()), uint32(d.number()), uint32(d.number()), uint32(d.number())
		e.rdev, e.size, e.sec, e.nsec, e.at = uint64(d.number()), d.number(), d.number(), int32(d.number()), d.number()
		e.skip = d.number()
		n := d.number()
		if n < 0 || n > int64(len(data)-d.at)/2 {
			return nil, errIndex
		}
		for range n {
			e.xattrs = append(e.xattrs, xattr{d.bytes(d.number()), d.bytes(d.number())})
		}
		if e.size > 0 {
			copy(e.digest[:], d.bytes(sha256.Size))
		}
		if d.bad || e.size < 0 || e.at < 0 || e.skip < 0 {
			return nil, errIndex
		}
	}
	last := frame{-1, -1}
	for i := range x.frames {
		f := frame{d.number(), d.number()}
		if i == 0 && f != (frame{}) || f.plain <= last.plain || f.packed <= last.packed || f.plain-last.plain > frameSize+1 {
			return nil, errIndex
		}
		x.frames[i], last = f, f
	}
	if d.bad || d.at != len(data) {
		return nil, errIndex
	}
	return x, nil
}
