package fuse

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// work is a server thread that reads requests from /dev/fuse. It never unlocks its thread, so that the runtime ends it with the goroutine: its
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
	s := &server{queue: noQueue}
	s.tid.Store(int32(unix.Gettid()))
	c.enlist(s)
	defer c.dismiss(s)

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
			c.handle(s, in[:n], out)
			continue
		}
		buf, err := c.large.get()
		if err != nil {
			c.refuse(in, out, unix.ENOMEM)
			continue
		}
		c.handle(s, in[:n], buf)
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

// more is called when no thread is left waiting. Another one is woken, or started, if that is still so a little later: most requests are
// performed in less time than waking a thread takes, and where threads have to wait for a CPU, those that are needed have been woken
// already and others would only come and go. Nor must bursts of requests end up as thousands of threads.
func (c *transport) more() {
	if c.fixed.Load() || c.growing.Swap(true) {
		return
	}
	delay := patience
	if c.running.Load() >= quickly && c.parked.Load() == 0 {
		delay = growthDelay
	}
	c.workers.Add(1)
	time.AfterFunc(delay, c.grow)
}

func (c *transport) grow() {
	defer c.workers.Done()
	c.growing.Store(false)
	if c.waiting.Load() > 0 || c.stopped.Load() || c.fixed.Load() {
		return
	}
	select {
	case c.unpark <- struct{}{}:
	default: // none is parked
		if n := c.running.Load(); n == 0 || n >= maxThreads {
			return
		}
		c.start(func() {})
	}
	c.more()
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
