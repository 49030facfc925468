package fuse

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// rings carries requests over io_uring (Linux 6.14, where the module parameter enable_uring of fuse is on): one system call gives an
// answer and takes the next request, on the CPU of the process that waits for it. What has no answer (FORGET, INTERRUPT) and
// notifications go by /dev/fuse all the same.
//
// The kernel has a queue for each possible CPU, and a request goes into that of the CPU on which it is made, to one of the entries that
// threads have put there: the one that was put there last. An entry is memory that a request is written to and its answer is read
// from; with the answer the thread puts it back. Each thread has one, so a slow request keeps only its own thread, and stays on the CPU of
// its queue. In the beginning one thread has an entry in each queue, as the kernel wants it; it performs nothing, but starts the
// first thread of a queue with the first request that there is, and passes the entry on.
//
// An entry stays in its queue until the connection ends: nobody can take it out. So threads do not end before.
type rings struct {
	*transport
	queues []queue
	agreed chan struct{} // closed when INIT was answered
	taken  chan struct{} // closed when the kernel has taken the entries, or refused to
	inUse  atomic.Bool
	kicks  atomic.Uint64
	file   atomic.Uint64 // a regular file that was opened, 0: none yet

	made    []madeRing // guarded by transport.mu, as entries
	entries []*entry
	closed  sync.Once
}

// queue is the threads of a CPU.
type queue struct {
	cpu     int
	waiting atomic.Int32 // for requests
	running atomic.Int32
	growing atomic.Bool // grow is about to be called
}

// madeRing is a ring and the thread that uses it.
type madeRing struct {
	*ring
	tid int
}

// capOverURing is FUSE_OVER_IO_URING.
const capOverURing = 1 << 41

// Of struct fuse_uring_cmd_req and its commands.
const (
	cmdRegister       = 1 // puts an entry into a queue
	cmdCommitAndFetch = 2 // gives an answer, and puts the entry back
)

// newRings prepares for requests over io_uring. It returns nil if there can be none: that is no error, and nothing has happened then.
func (c *transport) newRings() *rings {
	cpus, err := possibleCPUs()
	if err != nil || !takesCommands(c.fd) {
		return nil
	}
	r := &rings{transport: c, queues: make([]queue, cpus), agreed: make(chan struct{}), taken: make(chan struct{})}
	for i := range r.queues {
		r.queues[i].cpu = i
	}
	ready := make(chan error, 1)
	r.start(&server{queue: noQueue}, func(s *server) { r.spread(s, ready) })
	if <-ready != nil {
		return nil
	}
	c.rings.Store(r)
	return r
}

// possibleCPUs returns how many CPUs there may ever be, which is how many queues there are.
func possibleCPUs() (int, error) {
	list, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(string(list)), ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		last := first
		if isRange && err == nil {
			last, err = strconv.Atoi(to)
		}
		if err != nil || last < first {
			return 0, fmt.Errorf("possible CPUs: %q", list)
		}
		n += last - first + 1
	}
	return n, nil
}

// takesCommands tries whether a command gets to the driver. That is not so without io_uring, or where a security module says
// no; the kernel would wait for ever for entries that cannot be made. The driver is the one to say EINVAL: the command is too short.
func takesCommands(fd int) bool {
	r, err := newRing(1, 0)
	if err != nil {
		return false
	}
	defer r.close()
	r.add(command{fd: int32(fd), op: cmdRegister})
	err = r.enter(1)
	c, ok := r.next()
	return err == nil && ok && c.res == -int32(unix.EINVAL)
}

// begin is called when the kernel was told that requests shall come over io_uring. It lets none through until there are entries in all queues;
// if it does not take one, they come by /dev/fuse.
func (r *rings) begin() {
	close(r.agreed)
	select {
	case <-r.taken:
	case <-r.ended:
	}
}

// overRings says whether requests come over io_uring.
func (c *transport) overRings() bool {
	r := c.rings.Load()
	return r != nil && r.inUse.Load()
}

// start runs f on a server thread, which is in servers as s already when start returns.
func (r *rings) start(s *server, f func(*server)) {
	r.running.Add(1)
	r.workers.Add(1)
	r.enlist(s)
	onOwnThread(func() {
		defer r.workers.Done()
		defer r.running.Add(-1)
		defer r.dismiss(s)
		s.tid.Store(int32(unix.Gettid()))
		if err := r.tree.serves(); err != nil {
			r.fail(fmt.Errorf("server thread: %w", err))
			return
		}
		f(s)
	})
}

// onOwnThread runs f on a thread that ends with it: not the process's first, which never does.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		other := make(chan struct{})
		onOwnThread(func() {
			close(other)
			f()
		})
		<-other
		runtime.UnlockOSThread()
	}()
}

// spread has an entry in each queue, and starts the first thread of each.
func (r *rings) spread(s *server, ready chan<- error) {
	ring, err := r.newRing(len(r.queues))
	entries := make([]*entry, len(r.queues))
	for i := range entries {
		if err == nil {
			entries[i], err = r.newEntry(i)
		}
	}
	if ready <- err; err != nil {
		return
	}
	select {
	case <-r.agreed:
	case <-r.ended:
		return
	}
	for _, e := range entries {
		ring.add(e.register())
	}
	// A command that is refused is complete at once.
	if err := ring.enter(0); err != nil {
		r.fail(err)
		return
	}
	c, ok := ring.next()
	if ok && c.res < 0 {
		close(r.taken)
		return
	}
	r.inUse.Store(true)
	close(r.taken)
	for range entries { // then nothing is left to wait for
		s.now(0)
		if !ok {
			if c, ok = r.await(ring); !ok {
				return
			}
		}
		ok = false
		e := entries[c.data]
		s.now(e.opcode())
		q := &r.queues[c.data]
		q.running.Add(1)
		next := &server{queue: q.cpu}
		next.now(e.opcode())
		r.start(next, func(s *server) { r.serve(s, q, e) })
	}
}

// newRing makes a ring for the calling thread, which is closed with all others.
func (r *rings) newRing(entries int) (*ring, error) {
	ring, err := newRing(entries, setupSQE128)
	if err == nil {
		r.transport.mu.Lock()
		r.made = append(r.made, madeRing{ring, unix.Gettid()})
		r.transport.mu.Unlock()
	}
	return ring, err
}

// newEntry makes an entry for a queue, which is unmapped when no thread is left.
func (r *rings) newEntry(queue int) (*entry, error) {
	e, err := newEntry(r.fd, queue)
	if err == nil {
		r.transport.mu.Lock()
		r.entries = append(r.entries, e)
		r.transport.mu.Unlock()
	}
	return e, err
}

// await waits for the next completion. It returns false at the end of the connection.
func (r *rings) await(ring *ring) (completion, bool) {
	for {
		// First: once it is stopped, commands go to /dev/null, which takes them.
		if r.stopped.Load() {
			return completion{}, false
		}
		if c, ok := ring.next(); ok {
			if c.res >= 0 {
				return c, true
			}
			r.end()
			switch err := unix.Errno(-c.res); err {
			case unix.ENOTCONN, unix.ECONNABORTED, unix.ENODEV, unix.ENOENT, unix.ECANCELED:
			default:
				r.fail(fmt.Errorf("taking a request over io_uring: %w", err))
			}
			return c, false
		}
		if err := ring.enter(1); err != nil {
			r.fail(err)
			return completion{}, false
		}
	}
}

// serve is a thread of a queue. Its first entry has a request already, or is nil.
func (r *rings) serve(s *server, q *queue, e *entry) {
	defer q.running.Add(-1)
	pinned := pin(q.cpu)
	ring, err := r.newRing(1)
	for err != nil && e != nil && !r.stopped.Load() { // somebody waits, and there may be descriptors again soon
		time.Sleep(growthDelay)
		ring, err = r.newRing(1)
	}
	if err != nil {
		return
	}
	last := e != nil && q.waiting.Load() == 0
	if e == nil {
		if e, err = r.newEntry(q.cpu); err != nil {
			return
		}
		s.now(opNotifyReply)
		ring.add(e.register())
		if err := ring.enter(0); err != nil {
			r.fail(err)
			return
		}
		if pinned {
			r.kick()
		}
	} else {
		ring.add(r.answerTo(s, e, q, last))
	}
	for {
		s.now(0)
		q.waiting.Add(1)
		_, ok := r.await(ring)
		if !ok {
			q.waiting.Add(-1)
			return
		}
		s.now(e.opcode())
		last := q.waiting.Add(-1) == 0
		ring.add(r.answerTo(s, e, q, last))
	}
}

// pin has the calling thread stay on a CPU, if it may run there and the CPU is there.
func pin(cpu int) bool {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set) == nil
}

// answerTo performs the request in an entry and returns the command that answers. The request is the last that a thread was left for, or
// not.
func (r *rings) answerTo(s *server, e *entry, q *queue, last bool) command {
	if e.opcode() == opNotifyReply { // see kick
		answer(e.head(), outHeaderSize, e.unique(), unix.ENOSYS)
		return e.commit(outHeaderSize)
	}
	if e.opcode() == opOpen {
		r.file.Store(nodeID(e.head()))
	}
	if last {
		r.more(q)
	}
	unique := e.unique()
	req, rest, ok := e.request()
	n := outHeaderSize
	if ok {
		n = r.perform(s, req, rest, e.mem[:outHeaderSize], e.mem[entryPayload:])
	} else {
		answer(e.head(), outHeaderSize, unique, unix.EIO)
	}
	if n == 0 { // an answer there must be
		answer(e.head(), outHeaderSize, unique, unix.EINTR)
		n = outHeaderSize
	}
	return e.commit(n)
}

// more is called when no thread of a queue is left waiting.
func (r *rings) more(q *queue) {
	if q.running.Load() < quickly {
		r.another(q)
	} else if !q.growing.Swap(true) { // bursts must not end up as thousands of threads
		r.workers.Add(1)
		time.AfterFunc(growthDelay, func() {
			defer r.workers.Done()
			q.growing.Store(false)
			if q.waiting.Load() == 0 && !r.stopped.Load() && r.running.Load() < maxThreads {
				r.another(q)
			}
		})
	}
}

func (r *rings) another(q *queue) {
	q.running.Add(1)
	r.start(&server{queue: q.cpu}, func(s *server) { r.serve(s, q, nil) })
}

// interruptLater tries again to interrupt an operation. A thread may have its request but not have begun: it has come another way than the
// interrupt, which the kernel does not send again as it does by /dev/fuse.
func (c *transport) interruptLater(req []byte) {
	const tries = 5
	c.workers.Add(1)
	go func() {
		defer c.workers.Done()
		out := make([]byte, smallBuf)
		for range tries {
			time.Sleep(10 * time.Millisecond)
			if c.stopped.Load() || c.perform(nil, req, nil, out[:outHeaderSize], out[outHeaderSize:]) == 0 {
				return
			}
		}
	}()
}

// kick is called after an entry was put into the queue of the CPU that it is called on. The kernel gives it no request that is in the queue already,
// only one that comes later, and all threads may be busy for long. What is left waiting is given out when some entry is put back. So
// a request is made that can be answered at once: the kernel is asked for cached data of a file, none of it. It must be a regular file that the
// kernel knows; without one, nobody waits for a lock, which is what may take for ever.
func (r *rings) kick() {
	node := r.file.Load()
	if node == 0 {
		return
	}
	m := notification(notifyRetrieve, 32)
	put64(m[outHeaderSize:], 1<<62|r.kicks.Add(1)<<1) // the number of the request: the kernel does not get as far, and odd ones are special
	put64(m[outHeaderSize+8:], node)
	r.write(m)
}

const notifyRetrieve = 5 // of linux/fuse.h

// close closes the rings when all threads have ended. The kernel takes the commands of a thread back as it ends, and with them the last
// references to the device: when nothing is left of any thread, the connection is aborted.
func (r *rings) close() {
	r.closed.Do(func() {
		r.transport.mu.Lock()
		defer r.transport.mu.Unlock()
		for _, m := range r.made {
			for exists(m.tid) {
				time.Sleep(100 * time.Microsecond)
			}
			m.close()
		}
		for _, e := range r.entries {
			_ = unix.Munmap(e.mem)
		}
	})
}

// exists says whether there is a thread of this process.
func exists(tid int) bool {
	_, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid))
	return !errors.Is(err, os.ErrNotExist)
}
