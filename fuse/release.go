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
	tid   atomic.Int32 // 0: it is being started
	queue int          // whose requests it takes over io_uring
	// does is the opcode of the request that it performs, 0 while it is about to wait for one, and above that how many of
	// these states there have been.
	does atomic.Uint64
	// unique is the number of the request that it performs quickly, or 0.
	unique atomic.Uint64
}

const (
	stateShift = 8
	noQueue    = -1
)

func (s *server) now(op uint32) {
	s.does.Store((s.does.Load()>>stateShift+1)<<stateShift | uint64(op))
}

// performs says whether some thread performs a request quickly.
func (c *transport) performs(unique uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.servers {
		if s.unique.Load() == unique {
			return true
		}
	}
	return false
}

func (c *transport) enlist(s *server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[s] = struct{}{}
}

func (c *transport) dismiss(s *server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.servers, s)
}

// releases returns a function that says whether a RELEASE may still have to be performed that was sent before the
// call. The kernel does not wait for its answer, but sends requests in order (fiq->pending): when a thread has a request,
// some thread has been given every RELEASE before it. That one performs it, or has not come so far: it has been woken,
// and waits for a CPU.
//
// Over io_uring there is an order in each queue only. As long as a thread of a queue sleeps, nothing is left in the queue. Where
// none does, one is waited for, and then for what is being released.
func (c *transport) releases() func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, known := make(map[*server]uint64), make(map[*server]struct{})
	for s := range c.servers {
		known[s] = struct{}{}
		if does := s.does.Load(); op(does) == 0 || op(does) == opRelease {
			seen[s] = does
		}
	}
	behind := c.behind()
	return func() bool {
		for s, does := range seen {
			if !s.mayRelease(does) {
				delete(seen, s)
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for s := range c.servers { // it may have been passed on to a new thread
			if _, ok := known[s]; !ok {
				known[s] = struct{}{}
				if does := s.does.Load(); does == 1<<stateShift|opRelease {
					seen[s] = does
				}
			}
		}
		for q := range behind {
			if idle, releases := c.activity(q); idle && !releases {
				delete(behind, q)
			}
		}
		return len(seen)+len(behind) > 0
	}
}

// behind returns the queues in which requests may be left. c.mu is held.
func (c *transport) behind() map[int]struct{} {
	behind := make(map[int]struct{})
	if r := c.rings.Load(); r != nil {
		for q := range r.queues {
			if idle, _ := c.activity(q); !idle && r.queues[q].running.Load() > 0 {
				behind[q] = struct{}{}
			}
		}
	}
	return behind
}

// activity says whether some thread of a queue sleeps, and whether some may have a RELEASE. c.mu is held.
func (c *transport) activity(q int) (idle, releases bool) {
	for s := range c.servers {
		if s.queue != q {
			continue
		}
		switch op(s.does.Load()) {
		case opRelease:
			releases = true
		case 0:
			if runnable(int(s.tid.Load())) {
				releases = true
			} else {
				idle = true
			}
		}
	}
	return idle, releases
}

// mayRelease says whether a thread that was seen in a state may have a RELEASE from then.
func (s *server) mayRelease(seen uint64) bool {
	does := s.does.Load()
	if does == seen {
		return op(does) == opRelease || runnable(int(s.tid.Load()))
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
		if t := s.tid.Load(); t != 0 && int(t) == tid { // 0: a thread that cannot be seen from here
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
		if tid := s.tid.Load(); tid != 0 {
			_ = unix.Tgkill(unix.Getpid(), int(tid), sig)
		}
	}
}
