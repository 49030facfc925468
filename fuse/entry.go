package fuse

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// entry is memory for one request over io_uring and its answer, see rings. It is not on the heap: of most only three pages are ever used.
type entry struct {
	fd    int
	queue uint16
	mem   []byte
}

// Layout of an entry. At its beginning is struct fuse_uring_req_header.
const (
	entryOpIn    = 128 // the arguments of the operation; before that is its header, and then the header of the answer
	entryInOut   = 256 // struct fuse_uring_ent_in_out
	entryVectors = 1024
	entryNames   = 4096 // what is short and follows the arguments is performed from here: the answer goes where it was
	entryPayload = entryNames + 32<<10
	entrySize    = entryPayload + bufSize

	entryHeaderSize = 288
)

// newEntry makes an entry for a queue. The kernel may write to it as long as the connection lasts.
func newEntry(fd, queue int) (*entry, error) {
	mem, err := unix.Mmap(-1, 0, entrySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping a buffer of %d bytes: %w", entrySize, err)
	}
	return &entry{fd: fd, queue: uint16(queue), mem: mem}, nil
}

func (e *entry) head() []byte   { return e.mem[:headerSize] }
func (e *entry) opcode() uint32 { return opcode(e.mem) }
func (e *entry) unique() uint64 { return binary.NativeEndian.Uint64(e.mem[8:]) }

// request returns what the kernel has written: header and arguments, and the rest.
func (e *entry) request() (req, rest []byte, ok bool) {
	size := int(binary.NativeEndian.Uint32(e.mem))
	payload := int(binary.NativeEndian.Uint32(e.mem[entryInOut+16:]))
	args := size - headerSize - payload
	if args < 0 || args > entryInOut-entryOpIn || payload > bufSize {
		return nil, nil, false
	}
	rest = e.mem[entryPayload : entryPayload+payload]
	if names := e.mem[entryNames:entryPayload]; payload <= len(names) {
		rest = names[:copy(names, rest)]
	}
	// In one piece: between header and arguments there is room.
	req = e.mem[entryOpIn-headerSize : entryOpIn+args]
	copy(req, e.head())
	return req, rest, true
}

// register is the command that puts the entry into its queue.
func (e *entry) register() command {
	vectors := (*[2]unix.Iovec)(unsafe.Pointer(&e.mem[entryVectors]))
	vectors[0] = unix.Iovec{Base: &e.mem[0]}
	vectors[0].SetLen(entryHeaderSize)
	vectors[1] = unix.Iovec{Base: &e.mem[entryPayload]}
	vectors[1].SetLen(bufSize)
	return command{
		fd: int32(e.fd), op: cmdRegister, addr: uint64(uintptr(unsafe.Pointer(vectors))), size: uint32(len(vectors)),
		data: uint64(e.queue), queue: e.queue,
	}
}

// commit is the command that gives an answer of so many bytes, header and all, and puts the entry back.
func (e *entry) commit(size int) command {
	put64(e.mem[entryInOut:], 0)
	binary.NativeEndian.PutUint32(e.mem[entryInOut+16:], uint32(size-outHeaderSize))
	return command{
		fd: int32(e.fd), op: cmdCommitAndFetch, data: uint64(e.queue), queue: e.queue,
		commitID: binary.NativeEndian.Uint64(e.mem[entryInOut+8:]),
	}
}

func put64(b []byte, v uint64) { binary.NativeEndian.PutUint64(b, v) }
