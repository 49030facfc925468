package fuse

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	raw "github.com/hanwen/go-fuse/v2/fuse"
)

// The requests that most are of are performed without go-fuse's ProtocolServer. That allocates a kilobyte for each, with what it takes to
// cancel it; these have nothing to cancel, as they wait for the tree's file system and nothing else. Arguments and answers are where the kernel
// put them and takes them from: the structures of go-fuse are those of linux/fuse.h.

// quickArgs is how long header and arguments of a request are, for those that are performed here. 0: for the others.
var quickArgs = [...]int{
	opLookup:      headerSize,
	opGetAttr:     int(unsafe.Sizeof(raw.GetAttrIn{})),
	opSetAttr:     int(unsafe.Sizeof(raw.SetAttrIn{})),
	opUnlink:      headerSize,
	opOpen:        int(unsafe.Sizeof(raw.OpenIn{})),
	opRelease:     int(unsafe.Sizeof(raw.ReleaseIn{})),
	opGetXattr:    int(unsafe.Sizeof(raw.GetXAttrIn{})),
	opFlush:       int(unsafe.Sizeof(raw.FlushIn{})),
	opOpenDir:     int(unsafe.Sizeof(raw.OpenIn{})),
	opReleaseDir:  int(unsafe.Sizeof(raw.ReleaseIn{})),
	opCreate:      int(unsafe.Sizeof(raw.CreateIn{})),
	opReadDirPlus: int(unsafe.Sizeof(raw.ReadIn{})),
}

// quick says whether a request is performed here, and how long header and arguments are.
func quick(req []byte) (size int, ok bool) {
	op := opcode(req)
	const extensions = 36 // total_extlen of struct fuse_in_header
	if op >= uint32(len(quickArgs)) || quickArgs[op] == 0 || binary.NativeEndian.Uint16(req[extensions:]) != 0 || nodeID(req) == ^uint64(0) {
		return 0, false
	}
	return quickArgs[op], true
}

// performQuick performs a request. In is header and arguments, rest what follows, out the answer behind its header, of which it returns the length.
func performQuick(fs backend, in, rest, out []byte) (int, raw.Status) {
	p := unsafe.Pointer(&in[0])
	switch opcode(in) {
	case opLookup:
		e, n := room[raw.EntryOut](out)
		return n, fs.Lookup(nil, (*raw.InHeader)(p), firstName(rest), e)
	case opGetAttr:
		a, n := room[raw.AttrOut](out)
		return n, fs.GetAttr(nil, (*raw.GetAttrIn)(p), a)
	case opSetAttr:
		a, n := room[raw.AttrOut](out)
		return n, fs.SetAttr(nil, (*raw.SetAttrIn)(p), a)
	case opUnlink:
		return 0, fs.Unlink(nil, (*raw.InHeader)(p), firstName(rest))
	case opOpen:
		o, n := room[raw.OpenOut](out)
		return n, fs.Open(nil, (*raw.OpenIn)(p), o)
	case opRelease:
		fs.Release(nil, (*raw.ReleaseIn)(p))
	case opGetXattr:
		return getXattr(fs, (*raw.GetXAttrIn)(p), firstName(rest), out)
	case opFlush:
		return 0, fs.Flush(nil, (*raw.FlushIn)(p))
	case opOpenDir:
		o, n := room[raw.OpenOut](out)
		return n, fs.OpenDir(nil, (*raw.OpenIn)(p), o)
	case opReleaseDir:
		fs.ReleaseDir((*raw.ReleaseIn)(p))
	case opCreate:
		o, n := room[raw.CreateOut](out)
		return n, fs.Create(nil, (*raw.CreateIn)(p), firstName(rest), o)
	case opReadDirPlus:
		in := (*raw.ReadIn)(p)
		list := raw.NewDirEntryList(out[:min(int(in.Size), len(out))], in.Offset)
		st := fs.ReadDirPlus(nil, in, list)
		return len(list.Bytes()), st
	}
	return 0, raw.OK
}

// room returns where the answer goes, and how long it is.
func room[T any](out []byte) (*T, int) {
	size := int(unsafe.Sizeof(*new(T)))
	clear(out[:size])
	return (*T)(unsafe.Pointer(&out[0])), size
}

// getXattr is getxattr(2), which asks for the length alone with a size of 0.
func getXattr(fs backend, in *raw.GetXAttrIn, name string, out []byte) (int, raw.Status) {
	n, st := fs.GetXAttr(nil, &in.InHeader, name, out[:min(int(in.Size), len(out))])
	if in.Size > 0 {
		return int(n), st
	}
	if st == raw.ERANGE {
		st = raw.OK
	}
	o, size := room[raw.GetXAttrOut](out)
	o.Size = n
	return size, st
}

// firstName is what comes before the first zero.
func firstName(rest []byte) string {
	name, _, _ := bytes.Cut(rest, []byte{0})
	return string(name)
}
