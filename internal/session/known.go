package session

import (
	"sync"

	"golang.org/x/sys/unix"
)

// known remembers threads that belong to the session, so that /proc need not be read for each file that one opens. Each
// is held by a pidfd: a thread id that was used again is not mistaken for the thread that had it before. A thread that
// somebody moved out of the session's control group, which takes root on the host, is believed for as long as it
// lives.
type known struct {
	mu     sync.Mutex
	pidfds map[uint32]int
	ring   [64]uint32 // thread ids in the order of arrival; 0: free
	next   int
}

// pidfdThread is PIDFD_THREAD of linux/pidfd.h (Linux 6.9): a pidfd of any thread. Earlier kernels say EINVAL for it.
const pidfdThread = unix.O_EXCL

// has reports whether the thread was added and is still the same.
func (k *known) has(tid uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, ok := k.pidfds[tid]
	return ok && alive(fd)
}

// check has belongs look at a thread, and remembers it if it does.
func (k *known) check(tid uint32, belongs func(tid uint32) bool) bool {
	if k.has(tid) {
		return true
	}
	// Taken before the look, so that it is certain who was looked at.
	fd, err := unix.PidfdOpen(int(tid), pidfdThread)
	if err != nil {
		return belongs(tid)
	}
	if !belongs(tid) || !alive(fd) {
		_ = unix.Close(fd)
		return false
	}
	k.add(tid, fd)
	return true
}

// add takes over fd. It takes the place of what was added longest ago.
func (k *known) add(tid uint32, fd int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pidfds == nil {
		k.pidfds = make(map[uint32]int)
	}
	if old, ok := k.pidfds[tid]; ok { // another thread with this id, or added by somebody else meanwhile
		_ = unix.Close(old)
		k.pidfds[tid] = fd
		return
	}
	if old := k.ring[k.next]; old != 0 {
		_ = unix.Close(k.pidfds[old])
		delete(k.pidfds, old)
	}
	k.ring[k.next], k.pidfds[tid] = tid, fd
	k.next = (k.next + 1) % len(k.ring)
}

// alive reports whether the thread of a pidfd has not ended.
func alive(pidfd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return n == 0 && err == nil
		}
	}
}
