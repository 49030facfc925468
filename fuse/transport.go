package fuse

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// transport carries requests from the kernel to the operations and the answers back. Requests come by /dev/fuse (dev.go), or by
// io_uring where that is to be had (uring.go), all but the first and what has no answer. Either way, a server thread that gets a
// request performs it and answers before it waits for the next, so a request is done by one thread with one wake-up. When no thread
// is left waiting for a moment, there comes another, so slow requests delay nobody.
type transport struct {
	fd      int
	dev     *os.File
	tree    backend
	proto   *raw.ProtocolServer
	workers sync.WaitGroup

	waiting atomic.Int32  // threads in read(2)
	running atomic.Int32  // threads
	parked  atomic.Int32  // of them
	growing atomic.Bool   // grow is about to be called
	fixed   atomic.Bool   // no more threads are started, see reserve
	lockers chan []byte   // requests that wait for locks, once fixed
	idle    atomic.Int32  // threads that take the next of them, or are about to
	unpark  chan struct{} // received from by parked threads
	end     func()        // closes ended
	ended   chan struct{}
	stopped atomic.Bool
	offers  atomic.Uint64 // what the kernel said in INIT that it can do
	large   buffers

	wantRings bool
	rings     atomic.Pointer[rings] // nil: all requests come by /dev/fuse

	mu      sync.Mutex
	servers map[*server]struct{} // threads that may wait for requests
	closed  bool                 // dev is, and its number may be that of another file
	err     error

	counts [64]atomic.Uint64
}

const (
	maxWrite = 1 << 20 // the most that one READ or WRITE carries: 256 pages (FUSE_MAX_MAX_PAGES)
	// bufSize has room for the header as well; the kernel refuses to fill less (fuse_dev_do_read).
	bufSize = maxWrite + 4096

	smallBuf = 8 << 10 // for answers without data

	maxWaiting  = 2                     // threads in read(2): for a client's request, and for its RELEASE before that
	maxParked   = 8                     // threads beyond that end; with fewer they would come and go
	quickly     = 16                    // up to so many threads are started one by one
	patience    = time.Millisecond      // when none has been waiting for this long,
	growthDelay = 20 * time.Millisecond // more only if that is so for longer,
	maxThreads  = 4096                  // and never more than this, far below the Go runtime's limit of 10,000
)

// buffers keeps a few large buffers for the next use. They are not on the heap: of most only the first page is ever used,
// and a few of them would be enough to make the collector run while a session starts.
type buffers struct {
	mu   sync.Mutex
	free [][]byte
}

func (b *buffers) get() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.free); n > 0 {
		buf := b.free[n-1]
		b.free = b.free[:n-1]
		return buf, nil
	}
	buf, err := unix.Mmap(-1, 0, bufSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping a buffer of %d bytes: %w", bufSize, err)
	}
	return buf, nil
}

func (b *buffers) put(buf []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < 8 {
		b.free = append(b.free, buf)
		return
	}
	_ = unix.Munmap(buf)
}

// close unmaps what is kept. All others must have been put back.
func (b *buffers) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, buf := range b.free {
		_ = unix.Munmap(buf)
	}
	b.free = nil
}

// backend is the operations on one sort of tree, and what the transport has to tell it.
type backend interface {
	raw.RawFileSystem
	serves() error     // makes the calling thread a server thread
	locking() bool     // the server decides about locks; else the kernel does
	passthrough() bool // is asked for
	stackDepth() int
	connect(*transport) // before the first request
	tick()              // once a second, on a server thread
	hangUp()            // nobody may wait any more
	pollHack() bool
	close()
}

func newTransport(t backend, dev *os.File, wantRings bool) (*transport, error) {
	opts := &raw.MountOptions{
		MaxWrite:             maxWrite,
		MaxBackground:        64,
		EnableLocks:          t.locking(),
		EnableAcl:            true,
		EnableSymlinkCaching: true, // the target of a symbolic link cannot change
		MaxStackDepth:        t.stackDepth(),
		Logger:               log.Default(),
		ExtraCapabilities: raw.CAP_ATOMIC_O_TRUNC | raw.CAP_DONT_MASK | raw.CAP_EXPORT_SUPPORT |
			raw.CAP_HANDLE_KILLPRIV_V2 | raw.CAP_ASYNC_DIO | raw.CAP_IOCTL_DIR | raw.CAP_SETXATTR_EXT,
		// The kernel does not look at these in the answer: with the first ENOSYS to OPEN or OPENDIR it never asks again, see listings.
		DisabledCapabilities: raw.CAP_NO_OPEN_SUPPORT | raw.CAP_NO_OPENDIR_SUPPORT,
	}
	if !t.passthrough() {
		opts.DisabledCapabilities |= raw.CAP_PASSTHROUGH
	}
	fd := int(dev.Fd()) // blocking from here on
	if err := unix.SetNonblock(fd, false); err != nil {
		dev.Close()
		return nil, fmt.Errorf("fuse device: %w", err)
	}
	c := &transport{
		fd: fd, dev: dev, tree: t, proto: raw.NewProtocolServer(t, opts), servers: make(map[*server]struct{}),
		unpark: make(chan struct{}), ended: make(chan struct{}), lockers: make(chan []byte),
		wantRings: wantRings,
	}
	c.end = sync.OnceFunc(func() { close(c.ended) })
	t.connect(c)
	return c, nil
}

// serve runs until the connection ends.
func (c *transport) serve() error {
	done := make(chan struct{})
	go c.tick(done)
	c.start(func() {})
	c.wait()
	close(done)
	c.large.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dev.Close()
	c.closed = true
	return c.err
}

// tick does what is due once a second, as a server thread.
func (c *transport) tick(done <-chan struct{}) {
	if err := c.tree.serves(); err != nil {
		c.fail(fmt.Errorf("server thread: %w", err))
		return
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			c.tree.tick()
		}
	}
}

// also runs f on a server thread, besides the requests. When the connection ends, stop is called, and f must return.
func (c *transport) also(f, stop func()) {
	stopped := make(chan struct{})
	go func() {
		<-c.ended
		stop()
		close(stopped)
	}()
	c.workers.Add(1)
	go func() {
		defer c.workers.Done()
		if c.tree.serves() == nil {
			f()
		}
		<-stopped // it must not be called when all is over
	}()
}

// start starts a server thread, which calls ready.
func (c *transport) start(ready func()) {
	c.running.Add(1)
	c.workers.Add(1)
	go c.work(ready)
}

// Layout of struct fuse_in_header.
const (
	headerSize = 40

	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opSetAttr     = 4
	opUnlink      = 10
	opOpen        = 14
	opRead        = 15
	opRelease     = 18
	opGetXattr    = 22
	opListXattr   = 23
	opFlush       = 25
	opInit        = 26
	opOpenDir     = 27
	opReadDir     = 28
	opReleaseDir  = 29
	opSetLkw      = 33
	opCreate      = 35
	opInterrupt   = 36
	opIoctl       = 39
	opNotifyReply = 41
	opBatchForget = 42
	opReadDirPlus = 44
)

func opcode(req []byte) uint32 { return binary.NativeEndian.Uint32(req[4:]) }
func nodeID(req []byte) uint64 { return binary.NativeEndian.Uint64(req[16:]) }

// handle performs one request and answers. s is the thread that does so, nil if it is none of those that wait for requests.
func (c *transport) handle(s *server, req, out []byte) {
	if opcode(req) == opInit {
		c.init(req, out)
		return
	}
	n := c.perform(s, req, nil, out[:outHeaderSize], out[outHeaderSize:])
	if n > 0 && opcode(req) == opInterrupt && c.rings.Load() != nil {
		c.interruptLater(append([]byte(nil), req...))
	} else if n > 0 {
		c.reply(out, n)
	}
}

// perform performs one request: header and arguments, and the rest, which may follow them in the same piece. Head and body are for the
// answer. It returns how long the answer is, 0 if there is none.
func (c *transport) perform(s *server, req, rest, head, body []byte) int {
	c.counts[opcode(req)%uint32(len(c.counts))].Add(1)
	unique := binary.NativeEndian.Uint64(req[8:])
	n, st := 0, raw.ENOENT
	size, isQuick := quick(req)
	isHack := nodeID(req) == rootNode && (bytes.Contains(req, pollHack) || bytes.Contains(rest, pollHack))
	switch {
	case opcode(req) == opInterrupt && len(req) >= headerSize+8 && c.performs(binary.NativeEndian.Uint64(req[headerSize:])):
		return 0 // there is nothing to interrupt, and an answer would have the kernel ask again
	case isHack && !c.tree.pollHack():
	case s != nil && isQuick && !isHack && len(req) >= size:
		if rest == nil {
			req, rest = req[:size], req[size:]
		}
		s.unique.Store(unique)
		n, st = performQuick(c.tree, req, rest, body)
		s.unique.Store(0)
		n += outHeaderSize
		answer(head, n, unique, 0)
	default:
		n, st = c.proto.HandleRequest([][]byte{req, rest}, [][]byte{head, body})
	}
	if !st.Ok() {
		// Nothing that the protocol has an answer for, but the process that waits needs one.
		answer(head, outHeaderSize, unique, unix.Errno(st))
		return outHeaderSize
	}
	return n
}

// init answers the first request, in which the kernel says what it can do.
func (c *transport) init(req, out []byte) {
	var r *rings
	if len(req) >= headerSize+20 { // struct fuse_init_in: flags and flags2
		offers := uint64(binary.NativeEndian.Uint32(req[headerSize+12:])) | uint64(binary.NativeEndian.Uint32(req[headerSize+16:]))<<32
		c.offers.Store(offers)
		if c.wantRings && offers&capOverURing != 0 {
			r = c.newRings()
		}
	}
	n := c.perform(nil, req, nil, out[:outHeaderSize], out[outHeaderSize:])
	if r != nil && n >= outHeaderSize+36 { // struct fuse_init_out: flags2
		flags := out[outHeaderSize+32:]
		binary.NativeEndian.PutUint32(flags, binary.NativeEndian.Uint32(flags)|capOverURing>>32)
	}
	c.reply(out, n)
	if r != nil {
		r.begin()
	}
}

// refuse answers a request with an error.
func (c *transport) refuse(req, out []byte, errno unix.Errno) {
	answer(out, outHeaderSize, binary.NativeEndian.Uint64(req[8:]), errno)
	c.write(out[:outHeaderSize])
}

// answer makes the header of an answer, which is n bytes long with it.
func answer(head []byte, n int, unique uint64, errno unix.Errno) {
	binary.NativeEndian.PutUint32(head, uint32(n))
	binary.NativeEndian.PutUint32(head[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(head[8:], unique)
}

// reply writes an answer of n bytes, of which all but the length is there.
func (c *transport) reply(out []byte, n int) {
	binary.NativeEndian.PutUint32(out, uint32(n))
	c.write(out[:n])
}

// write writes an answer. ENOENT: nobody waits for it any more. Nothing can be done about other errors either.
func (c *transport) write(out []byte) { _, _ = unix.Write(c.fd, out) }

const outHeaderSize = 16

// pollHack is a name that go-fuse makes up in the root directory, for servers that use their own mount. We have no use
// for it, and a tree of files has no such file.
var pollHack = []byte(".go-fuse-epoll-hack\x00")

// fail ends the connection because of an error.
func (c *transport) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.hangUp()
}

// stop ends the connection and returns when no thread uses it any more, but for those in the middle of an operation.
func (c *transport) stop() {
	c.hangUp()
	c.wait()
}

// wait waits until no thread uses the connection.
func (c *transport) wait() {
	c.workers.Wait()
	if r := c.rings.Load(); r != nil {
		r.close()
	}
}

// hangUp makes the kernel abort the connection, which it does when the last reference to the device is gone.
//
// Threads in read(2) hold a reference, and closing a descriptor does not wake them. So /dev/null takes the place of
// the device under the same number, and the threads get a signal. The Go runtime installs its handlers with
// SA_RESTART: each read starts over, on the number, and finds the end of /dev/null.
func (c *transport) hangUp() {
	if c.stopped.Swap(true) {
		return
	}
	c.end()
	c.tree.hangUp()
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	c.mu.Lock()
	if !c.closed {
		err = unix.Dup3(null, c.fd, unix.O_CLOEXEC)
	}
	c.mu.Unlock()
	unix.Close(null)
	if err != nil {
		return
	}
	go func() {
		for c.running.Load() > 0 {
			c.wake(unix.SIGURG)
			time.Sleep(time.Millisecond)
		}
	}()
	runtime.Gosched()
}

// requests returns the counters by name.
func (c *transport) requests() map[string]uint64 {
	m := make(map[string]uint64)
	for op := range c.counts {
		if n := c.counts[op].Load(); n > 0 {
			name := opNames[op]
			if name == "" {
				name = fmt.Sprintf("OPCODE_%d", op)
			}
			m[name] = n
		}
	}
	return m
}

var opNames = [64]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
	10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
	18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
	26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK",
	33: "SETLKW", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
	41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
	47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
	53: "COPY_FILE_RANGE_64",
}
