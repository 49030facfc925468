package fuse

import (
	"time"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// flock is flock(2).
func (fs *tree) flock(cancel <-chan struct{}, h *handle, typ uint32, wait bool) raw.Status {
	how := map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[typ]
	file, err := fs.ownFile(h)
	if err != nil {
		return status(err)
	}
	h.flocked.Store(true)
	try := func(fd int) error { return retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) }) }
	others := h.s.othersFlocked(h) // before it is tried: they may let go at any time
	err = try(file)
	if !wait && err == unix.EWOULDBLOCK && others {
		err = fs.locks.afterRelease(func() error { return try(file) })
	}
	if wait && err == unix.EWOULDBLOCK {
		err = fs.locks.wait(file, cancel, func(fd int) error { return unix.Flock(fd, how) }, try)
	}
	return status(err)
}

// ownFile returns a descriptor of an open file of ours that stands for h alone.
func (fs *tree) ownFile(h *handle) (int, error) {
	if !h.shared {
		return h.fd, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lock < 0 {
		fd, err := fs.reopen(h.fd, unix.O_RDONLY)
		if err != nil {
			return -1, err
		}
		h.lock = fd
	}
	return h.lock, nil
}

// othersFlocked says whether another open file of the session has had a flock(2) lock.
func (s *openState) othersFlocked(h *handle) bool {
	if s == nil { // a directory
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.handles {
		if other != h && other.flocked.Load() {
			return true
		}
	}
	return false
}

// othersHold says whether another process of the session has POSIX locks on n.
func (ls *locks) othersHold(n *inode, owner uint64) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for k := range ls.owners {
		if k.n == n && k.owner != owner {
			return true
		}
	}
	return false
}

const (
	releaseLimit = 10 * time.Second // for a file system under the tree that takes its time to close a file
	releaseLook  = time.Millisecond
)

// afterRelease tries to get a lock that others of the session hold. On a disk, their locks are gone when they have
// closed the file, or ended. Here the kernel sends RELEASE and does not wait for the answer: "flock -n f true; flock -n
// f true" would fail now and then. So those who would not wait for the lock do wait for each RELEASE that was sent before.
func (ls *locks) afterRelease(try func() error) error {
	onTheirWay := ls.releases()
	end := time.Now().Add(releaseLimit)
	for {
		ls.mu.Lock()
		if ls.news == nil {
			ls.news = make(chan struct{})
		}
		news := ls.news
		ls.mu.Unlock()
		more := onTheirWay() && time.Now().Before(end)
		err := try() // the release may have come meanwhile
		if err != unix.EAGAIN || !more {
			return err
		}
		// The kernel does not tell that a thread went back to sleep for want of a request.
		look := time.NewTimer(releaseLook)
		select {
		case <-news:
		case <-look.C:
		case <-ls.ended:
			return err
		}
		look.Stop()
	}
}

// tell tells those in afterRelease of a release.
func (ls *locks) tell() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.news != nil {
		close(ls.news)
		ls.news = nil
	}
}
