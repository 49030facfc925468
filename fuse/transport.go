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

// transport carries requests from /dev/fuse to the operations and the answers back.
//
// Server threads sit in read(2) on the device. One that gets a request performs it and answers before it reads again,
// so a request is done by one thread with one wake-up. When no thread is left waiting, the one that took the last
// request gets another, so slow requests delay nobody.
//
// Few threads wait in read(2). The kernel wakes the one that has waited longest, so with many each would be woken after a
// long time, on a CPU that sleeps. The others are parked.
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
	unpark  chan struct{} // received from by parked threads
	end     func()        // closes ended
	ended   chan struct{}
	stopped atomic.Bool
	offers  atomic.Uint64 // what the kernel said in INIT that it can do
	large   buffers

	mu      sync.Mutex
	servers map[*server]struct{} // threads that may be in read(2)
	closed  bool                 // dev is, and its number may be that of another file
	err     error

	counts [64]atomic.Uint64
}

const (
	maxWrite = 1 << 20 // the most that one READ or WRITE carries: 256 pages (FUSE_MAX_MAX_PAGES)
	// bufSize has room for the header as well; the kernel refuses to fill less (fuse_dev_do_read).
	bufSize = maxWrite + 4096

	smallBuf = 8 << 10 // for answers without data

	maxWaiting  = 3                     // threads in read(2): for a client's request, its RELEASE before that, and a spare one
	maxParked   = 8                     // threads beyond that end; with fewer they would come and go
	quickly     = 16                    // up to so many threads are started at once when none is waiting,
	growthDelay = 20 * time.Millisecond // more only if that is still so a little later,
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

func newTransport(t backend, dev *os.File) (*transport, error) {
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
		// With an answer of ENOSYS to OPEN the kernel would never ask again, for the whole mount.
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
	c.workers.Wait()
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

// work is a server thread. It never unlocks its thread, so that the runtime ends it with the goroutine: its
// credentials and its working directory are nothing for other goroutines.
func (c *transport) work(ready func()) {
	defer c.workers.Done()
	defer c.running.Add(-1)
	err := c.tree.serves()
	ready()
	if err != nil {
		c.fail(fmt.Errorf("server thread: %w", err))
		return
	}
	s := &server{tid: unix.Gettid()}
	c.mu.Lock()
	c.servers[s] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.servers, s)
		c.mu.Unlock()
	}()

	in, err := c.large.get()
	if err != nil {
		c.fail(err)
		return
	}
	defer c.large.put(in)
	out := make([]byte, smallBuf)
	for {
		if c.waiting.Add(1) > maxWaiting && !c.fixed.Load() {
			// Those that were waiting may have got requests, and have counted this thread as one that waits.
			if c.waiting.Add(-1) >= maxWaiting && !c.park() {
				return
			}
			continue
		}
		s.now(0)
		n, err := c.read(in)
		if err == nil {
			s.now(opcode(in))
		}
		if c.waiting.Add(-1) == 0 && err == nil && opcode(in) != opForget && opcode(in) != opBatchForget {
			c.more()
		}
		if err != nil {
			c.end()
			if err != errEnd {
				c.fail(err)
			}
			return
		}
		if opcode(in) == opSetLkw {
			// Waits for a lock for as long as it takes. Others must not wait with it.
			c.lockLater(append([]byte(nil), in[:n]...), out)
			continue
		}
		if answerSize(in[:n]) <= smallBuf {
			c.handle(in[:n], out)
			continue
		}
		buf, err := c.large.get()
		if err != nil {
			c.answer(in, out, raw.Status(unix.ENOMEM))
			continue
		}
		c.handle(in[:n], buf)
		c.large.put(buf)
	}
}

// park waits until there is need of one more thread. It returns false if there will be none.
func (c *transport) park() bool {
	defer c.parked.Add(-1)
	if c.parked.Add(1) > maxParked {
		return false
	}
	select {
	case <-c.unpark:
		return true
	case <-c.ended:
		return false
	}
}

// more is called when no thread is left waiting.
func (c *transport) more() {
	select {
	case c.unpark <- struct{}{}:
		return
	default: // none is parked
	}
	if c.fixed.Load() {
		return
	}
	if c.running.Load() < quickly {
		c.start(func() {})
		return
	}
	// So many are rarely all slow at once. Bursts of requests must not end up as thousands of threads.
	if !c.growing.Swap(true) {
		c.workers.Add(1)
		time.AfterFunc(growthDelay, c.grow)
	}
}

func (c *transport) grow() {
	defer c.workers.Done()
	c.growing.Store(false)
	if c.waiting.Load() > 0 || c.stopped.Load() || c.fixed.Load() {
		return
	}
	if n := c.running.Load(); n > 0 && n < maxThreads {
		c.start(func() {})
		c.more()
	}
}

// answerSize is the most room that the answer to a request takes.
func answerSize(req []byte) int {
	at := 0 // where the request says how much it wants
	switch opcode(req) {
	case opRead, opReadDir, opReadDirPlus:
		at = headerSize + 16
	case opGetXattr, opListXattr:
		at = headerSize
	case opIoctl:
		at = headerSize + 28
	}
	if at == 0 || len(req) < at+4 {
		return smallBuf
	}
	return int(min(binary.NativeEndian.Uint32(req[at:]), maxWrite)) + 1024
}

// errEnd: the file system was unmounted, or stop was called.
var errEnd = fmt.Errorf("end of connection")

// read waits for a request.
func (c *transport) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, buf)
		if c.stopped.Load() {
			return 0, errEnd
		}
		switch err {
		case nil:
			if n < headerSize {
				return 0, errEnd // end of /dev/null, see stop
			}
			return n, nil
		case unix.EINTR, unix.EAGAIN, unix.ENOENT:
			// ENOENT: the request was given up while it was being read.
		case unix.ENODEV, unix.ECONNABORTED:
			return 0, errEnd
		case unix.EPERM:
			// The superblock is not there yet, and there is nothing to wait on: poll(2) returns POLLERR at once.
			time.Sleep(time.Millisecond)
		default:
			return 0, fmt.Errorf("read from fuse device: %w", err)
		}
	}
}

// Layout of struct fuse_in_header.
const (
	headerSize = 40

	opForget      = 2
	opInit        = 26
	opRead        = 15
	opRelease     = 18
	opGetXattr    = 22
	opListXattr   = 23
	opReadDir     = 28
	opSetLkw      = 33
	opIoctl       = 39
	opBatchForget = 42
	opReadDirPlus = 44
)

func opcode(req []byte) uint32 { return binary.NativeEndian.Uint32(req[4:]) }
func nodeID(req []byte) uint64 { return binary.NativeEndian.Uint64(req[16:]) }

// handle performs one request and answers.
func (c *transport) handle(req, out []byte) {
	op := opcode(req)
	c.counts[op%uint32(len(c.counts))].Add(1)
	if op == opInit && len(req) >= headerSize+20 { // struct fuse_init_in: flags and flags2
		c.offers.Store(uint64(binary.NativeEndian.Uint32(req[headerSize+12:])) | uint64(binary.NativeEndian.Uint32(req[headerSize+16:]))<<32)
	}
	var n int
	st := raw.ENOENT
	if nodeID(req) != rootNode || !bytes.Contains(req[headerSize:], pollHack) || c.tree.pollHack() {
		n, st = c.proto.HandleRequest([][]byte{req}, [][]byte{out})
	}
	if !st.Ok() {
		// Nothing that the protocol has an answer for, but the process that waits needs one.
		c.answer(req, out, st)
	} else if n > 0 {
		binary.NativeEndian.PutUint32(out, uint32(n))
		c.write(out[:n])
	}
}

// answer answers a request with an error.
func (c *transport) answer(req, out []byte, st raw.Status) {
	binary.NativeEndian.PutUint32(out, outHeaderSize)
	binary.NativeEndian.PutUint32(out[4:], uint32(-int32(st)))
	copy(out[8:16], req[8:16])
	c.write(out[:outHeaderSize])
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
	c.workers.Wait()
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
