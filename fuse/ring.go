package fuse

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is an io_uring(7) for commands to drivers (IORING_OP_URING_CMD), used by the thread that made it and by no other.
// Its descriptor is close-on-exec from the start.
type ring struct {
	fd     int
	queues []byte // both, as the kernel laid them out
	sqes   []byte

	sqHead, sqTail, cqHead, cqTail *uint32 // in queues
	sqMask, cqMask                 uint32
	cqes                           uint32 // where they are in queues
}

// Of linux/io_uring.h.
const (
	setupClamp        = 1 << 4
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13 // work for this thread is done when it waits, and wakes it only then
	setupNoSQArray    = 1 << 16 // Linux 6.6

	offSQEs = 0x10000000

	enterGetEvents = 1

	opURingCmd = 46
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, _, _, features, _ uint32
	_                                              [3]uint32
	sq                                             struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// command is struct io_uring_sqe of a command, 128 bytes, the last 80 of which are the driver's: struct fuse_uring_cmd_req here.
type command struct {
	opcode, flags uint8
	_             uint16
	fd            int32
	op, _         uint32
	addr          uint64
	size, _       uint32
	data          uint64
	_, _, _, _    uint16

	fuseFlags, commitID uint64
	queue               uint16
	_                   [62]byte
}

// completion is struct io_uring_cqe.
type completion struct {
	data  uint64 // of the command
	res   int32  // -errno
	flags uint32
}

const (
	commandSize    = 128
	completionSize = 16
)

// newRing makes a ring for so many commands at a time. It needs Linux 6.6 and fails with EPERM where kernel.io_uring_disabled says so,
// or with what a seccomp filter has to say.
func newRing(entries int, flags uint32) (*ring, error) {
	// No child may have the memory: a ring lives as long as that is mapped anywhere, and with it the FUSE connection, so what
	// waits for a dead server would go on waiting for as long as the reaper of the session lives.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	p := ringParams{flags: setupClamp | setupSingleIssuer | setupDeferTaskrun | setupNoSQArray | flags}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &ring{fd: int(fd), cqes: p.cq.cqes}
	// One area for both queues (IORING_FEAT_SINGLE_MMAP, Linux 5.4).
	err := r.mapQueues(int(p.cq.cqes+p.cqEntries*completionSize), int(p.sqEntries*commandSize))
	if err != nil {
		r.close()
		return nil, fmt.Errorf("mapping an io_uring: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.queues[off])) }
	r.sqHead, r.sqTail, r.sqMask = at(p.sq.head), at(p.sq.tail), *at(p.sq.mask)
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.mask)
	return r, nil
}

func (r *ring) mapQueues(queues, sqes int) (err error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.queues, err = unix.Mmap(r.fd, 0, queues, prot, flags); err != nil {
		return err
	}
	if r.sqes, err = unix.Mmap(r.fd, offSQEs, sqes, prot, flags); err != nil {
		return err
	}
	return errors.Join(unix.Madvise(r.queues, unix.MADV_DONTFORK), unix.Madvise(r.sqes, unix.MADV_DONTFORK))
}

// close gives the ring back. The kernel cancels commands that are under way a little later.
func (r *ring) close() {
	if r.queues != nil {
		_ = unix.Munmap(r.queues)
	}
	if r.sqes != nil {
		_ = unix.Munmap(r.sqes)
	}
	unix.Close(r.fd)
}

// add queues a command, which enter submits.
func (r *ring) add(c command) {
	c.opcode = opURingCmd
	tail := *r.sqTail // nobody else changes it
	*(*command)(unsafe.Pointer(&r.sqes[(tail&r.sqMask)*commandSize])) = c
	atomic.StoreUint32(r.sqTail, tail+1)
}

// enter submits what is queued and waits for so many completions, or for a signal (EINTR). That not all was submitted is no error, and
// the rest goes with the next call.
func (r *ring) enter(wait int) error {
	queued := *r.sqTail - atomic.LoadUint32(r.sqHead)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(queued), uintptr(wait), enterGetEvents, 0, 0)
	switch errno {
	case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY:
		return nil
	}
	return fmt.Errorf("io_uring_enter: %w", errno)
}

// next takes a completion, if there is one.
func (r *ring) next() (c completion, ok bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return c, false
	}
	c = *(*completion)(unsafe.Pointer(&r.queues[r.cqes+(head&r.cqMask)*completionSize]))
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}
