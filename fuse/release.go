package fuse

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// server is a server thread, as others see it.
type server struct {
	tid int
	// does is the opcode of the request that it performs, 0 while it is about to read one, and above that how many of
	// these states there have been.
	does atomic.Uint64
}

const stateShift = 8

func (s *server) now(op uint32) {
	s.does.Store((s.does.Load()>>stateShift+1)<<stateShift | uint64(op))
}

// releases returns a function that says whether a RELEASE may still have to be performed that was sent before the
// call. The kernel does not wait for its answer, but sends requests in order (fiq->pending): when a thread has a request,
// some thread has been given every RELEASE before it. That one performs it, or has not come so far: it has been woken in
// read(2), and waits for a CPU.
func (c *transport) releases() func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[*server]uint64)
	for s := range c.servers {
		if does := s.does.Load(); op(does) == 0 || op(does) == opRelease {
			seen[s] = does
		}
	}
	return func() bool {
		for s, does := range seen {
			if !s.mayRelease(does) {
				delete(seen, s)
			}
		}
		return len(seen) > 0
	}
}

// mayRelease says whether a thread that was seen in a state may have a RELEASE from then.
func (s *server) mayRelease(seen uint64) bool {
	does := s.does.Load()
	if does == seen {
		return op(does) == opRelease || runnable(s.tid)
	}
	return op(seen) == 0 && does>>stateShift == seen>>stateShift+1 && op(does) == opRelease
}

func op(does uint64) uint32 { return uint32(does & (1<<stateShift - 1)) }

// runnable says whether a thread of this process is on a CPU or waits for one.
func runnable(tid int) bool {
	stat, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(tid) + "/stat")
	if err != nil {
		return false // it has ended
	}
	_, state, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	return len(state) > 0 && state[0] == 'R'
}

// serves says whether a thread of this process is a server thread.
func (c *transport) serves(tid int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.servers {
		if s.tid == tid {
			return true
		}
	}
	return false
}

// wake sends every server thread a signal.
func (c *transport) wake(sig unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.servers {
		_ = unix.Tgkill(unix.Getpid(), s.tid, sig)
	}
}
