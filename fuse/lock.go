package fuse

import (
	"os"
	"runtime"
	"sync"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// locks are the file locks that the session holds. They are taken on the tree's files, so that the host's processes
// and the session's exclude one another.
//
// A flock(2) lock belongs to an open file, and each open file of the session has a descriptor of its own here. A POSIX
// lock belongs to a process and a file, and is dropped with the first descriptor of that file that the process closes.
// An open file description lock (F_OFD_SETLK, Linux 3.15) on a descriptor that stands for one process and one file
// is just that, and conflicts with the POSIX locks of the host as it should.
type locks struct {
	mu      sync.Mutex
	owners  map[lockKey]*lockOwner
	waiters int
	ended   chan struct{} // closed by stop
	news    chan struct{} // closed with the next release, if somebody waits for one
	once    sync.Once
	// releases is the transport's: whether a RELEASE may be on its way.
	releases func() func() bool
}

type lockKey struct {
	n     *inode
	owner uint64
}

// lockOwner is one process, as far as locks of one inode go.
type lockOwner struct {
	fd     int
	writes bool // fd is open for writing, which a lock for writing needs
	pid    uint32
	held   []lockRange
	users  int // operations under way; guarded by locks.mu
	gone   bool
}

// lockRange is what an owner has locked, both ends included.
type lockRange struct {
	start, end uint64
	typ        uint32
}

const maxWaiters = 1000 // threads that wait for locks

func (ls *locks) init() {
	ls.owners = make(map[lockKey]*lockOwner)
	ls.ended = make(chan struct{})
}

// stop ends all waiting.
func (ls *locks) stop() { ls.once.Do(func() { close(ls.ended) }) }

func (ls *locks) closeAll() {
	ls.stop()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for k, o := range ls.owners {
		delete(ls.owners, k)
		unix.Close(o.fd)
	}
}

// any says whether somebody holds POSIX locks on n, or is about to.
func (ls *locks) any(n *inode) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for k := range ls.owners {
		if k.n == n {
			return true
		}
	}
	return false
}

// closed drops the POSIX locks of a process on a file, one descriptor of which it closed.
func (ls *locks) closed(n *inode, owner uint64) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if o := ls.owners[lockKey{n, owner}]; o != nil {
		ls.remove(lockKey{n, owner}, o)
	}
}

// released drops what is left on a file when an open file is gone for good. The kernel does not tell of each close(2)
// of files that were opened for reading only, see noFlush.
func (ls *locks) released(h *handle) {
	ls.mu.Lock()
	lockers := h.lockers
	ls.mu.Unlock()
	for _, owner := range lockers {
		ls.closed(h.n, owner)
	}
}

func (ls *locks) remove(k lockKey, o *lockOwner) {
	delete(ls.owners, k)
	o.gone = true
	if o.users == 0 {
		unix.Close(o.fd)
	}
}

// owner returns what stands for a process on the file of h, to be given back with done.
func (fs *tree) lockOwner(h *handle, in *raw.LkIn) (*lockOwner, error) {
	ls := &fs.locks
	k := lockKey{h.n, in.Owner}
	writes := fs.openForWriting(h.n)
	ls.mu.Lock()
	defer ls.mu.Unlock()
	o := ls.owners[k]
	if o == nil {
		fd, writes, err := fs.openForLocks(h, writes)
		if err != nil {
			return nil, err
		}
		o = &lockOwner{fd: fd, writes: writes}
		ls.owners[k] = o
	}
	if in.Lk.Typ == unix.F_WRLCK && !o.writes {
		if len(o.held) > 0 {
			return nil, unix.ENOLCK // see openForLocks
		}
		fd, err := fs.reopen(h.fd, unix.O_RDWR)
		if err == nil {
			err = unix.Dup3(fd, o.fd, unix.O_CLOEXEC)
			unix.Close(fd)
		}
		if err != nil {
			if o.users == 0 {
				ls.remove(k, o)
			}
			return nil, err
		}
		o.writes = true
	}
	o.users++
	o.pid = in.Lk.Pid
	return o, nil
}

// openForLocks opens the file of h once more. For writing only if the session has it open for writing anyway: it could
// not be executed as long as a lock is held otherwise. That a process locks for reading by way of a file opened for
// reading, then for writing by way of another, while nobody had it open for writing before, is the one case that
// is refused (ENOLCK).
func (fs *tree) openForLocks(h *handle, writes bool) (int, bool, error) {
	if writes {
		if fd, err := fs.reopen(h.fd, unix.O_RDWR); err == nil {
			return fd, true, nil
		}
	}
	fd, err := fs.reopen(h.fd, unix.O_RDONLY)
	return fd, false, err
}

func (fs *tree) openForWriting(n *inode) bool {
	s := fs.opens.find(n)
	if s == nil {
		return false
	}
	defer fs.leave(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.handles {
		if h.writes {
			return true
		}
	}
	return false
}

// done gives an owner back, and forgets it if it holds nothing.
func (ls *locks) done(n *inode, owner uint64, o *lockOwner) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	o.users--
	if o.users > 0 {
		return
	}
	if o.gone {
		unix.Close(o.fd)
	} else if len(o.held) == 0 {
		ls.remove(lockKey{n, owner}, o)
	}
}

// GetLk says who is in the way of a lock (F_GETLK).
func (fs *tree) GetLk(_ <-chan struct{}, in *raw.LkIn, out *raw.LkOut) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return raw.EBADF
	}
	out.Lk = in.Lk
	out.Lk.Typ = unix.F_UNLCK
	if h.fd < 0 {
		return raw.OK
	}
	o, err := fs.lockOwner(h, in)
	if err != nil {
		return status(err)
	}
	defer fs.locks.done(h.n, in.Owner, o)
	lk := toFlock(&in.Lk)
	if err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, &lk); err != nil {
		return status(err)
	}
	if lk.Type == unix.F_UNLCK {
		return raw.OK
	}
	out.Lk.Typ = uint32(lk.Type)
	out.Lk.Start = uint64(lk.Start)
	out.Lk.End = 1<<63 - 1
	if lk.Len > 0 {
		out.Lk.End = uint64(lk.Start + lk.Len - 1)
	}
	out.Lk.Pid = uint32(lk.Pid)
	if lk.Pid == -1 { // an open file description lock: one of ours, or of the host
		out.Lk.Pid = fs.locks.holder(h.n, in.Owner, &out.Lk)
	}
	return raw.OK
}

// holder returns the process of the session that holds a lock, or 0.
func (ls *locks) holder(n *inode, but uint64, lk *raw.FileLock) uint32 {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for k, o := range ls.owners {
		if k.n != n || k.owner == but {
			continue
		}
		for _, r := range o.held {
			if r.start <= lk.End && lk.Start <= r.end {
				return o.pid
			}
		}
	}
	return 0
}

// SetLk takes or drops a lock, or fails with EAGAIN.
func (fs *tree) SetLk(cancel <-chan struct{}, in *raw.LkIn) raw.Status {
	return fs.setLock(cancel, in, false)
}

// SetLkw waits until a lock can be taken. The transport calls it on a thread that nothing else waits for.
func (fs *tree) SetLkw(cancel <-chan struct{}, in *raw.LkIn) raw.Status {
	return fs.setLock(cancel, in, true)
}

func (fs *tree) setLock(cancel <-chan struct{}, in *raw.LkIn, wait bool) raw.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return raw.EBADF
	}
	if h.fd < 0 {
		return raw.OK // made up, and nobody else can see it
	}
	if in.LkFlags&raw.LK_FLOCK != 0 {
		return fs.flock(cancel, h, in.Lk.Typ, wait)
	}
	if in.Lk.Typ == unix.F_UNLCK && !fs.locks.any(h.n) {
		return raw.OK
	}
	o, err := fs.lockOwner(h, in)
	if err != nil {
		return status(err)
	}
	defer fs.locks.done(h.n, in.Owner, o)
	lk := toFlock(&in.Lk)
	try := func(fd, cmd int) error { l := lk; return unix.FcntlFlock(uintptr(fd), cmd, &l) }
	others := fs.locks.othersHold(h.n, in.Owner) // before it is tried: they may let go at any time
	err = try(o.fd, unix.F_OFD_SETLK)
	if !wait && err == unix.EAGAIN && others {
		err = fs.locks.afterRelease(func() error { return try(o.fd, unix.F_OFD_SETLK) })
	}
	if wait && err == unix.EAGAIN {
		err = fs.locks.wait(o.fd, cancel,
			func(fd int) error { return try(fd, unix.F_OFD_SETLKW) },
			func(fd int) error { return try(fd, unix.F_OFD_SETLK) })
	}
	if err == nil {
		fs.locks.mu.Lock()
		o.held = setRange(o.held, lockRange{in.Lk.Start, in.Lk.End, in.Lk.Typ})
		h.locker(in.Owner)
		fs.locks.mu.Unlock()
	}
	return status(err)
}

// wait calls block, which waits in the kernel, until it succeeds or cancel is closed.
//
// A system call that waits cannot be stopped by a signal under the Go runtime: it starts over (SA_RESTART). It does so
// on the descriptor's number, though. So it is given a duplicate of fd, which refers to the same open file and so to
// the same lock owner, and to stop it /dev/null takes the duplicate's place before the signal: there, the lock is free.
func (ls *locks) wait(fd int, cancel <-chan struct{}, block, try func(fd int) error) error {
	ls.mu.Lock()
	if ls.waiters >= maxWaiters {
		ls.mu.Unlock()
		return unix.ENOLCK
	}
	ls.waiters++
	ls.mu.Unlock()
	defer func() {
		ls.mu.Lock()
		ls.waiters--
		ls.mu.Unlock()
	}()

	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dup)
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	finished, stopped := make(chan struct{}), make(chan bool, 1)
	go func() {
		select {
		case <-finished:
			stopped <- false
			return
		case <-cancel:
		case <-ls.ended:
		}
		_ = retry(func() error { return unix.Dup3(null, dup, unix.O_CLOEXEC) })
		// The thread may be about to enter the call, where it finds /dev/null, or be in it, where the signal finds it.
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		<-finished
		stopped <- true
	}()
	for err = block(dup); err == unix.EINTR; err = block(dup) {
		select {
		case <-cancel:
		case <-ls.ended:
		default:
			continue
		}
		break
	}
	close(finished)
	if <-stopped && err == nil {
		// The lock that was got may be one on /dev/null.
		if try(fd) != nil {
			err = unix.EINTR
		}
	}
	return err
}

func toFlock(lk *raw.FileLock) unix.Flock_t {
	f := unix.Flock_t{Type: int16(lk.Typ), Whence: unix.SEEK_SET, Start: int64(lk.Start)}
	if lk.End < 1<<63-1 {
		f.Len = int64(lk.End - lk.Start + 1)
	}
	return f
}

// setRange notes that r was locked, or unlocked, over whatever was held before.
func setRange(held []lockRange, r lockRange) []lockRange {
	var out []lockRange
	for _, h := range held {
		if h.end < r.start || h.start > r.end {
			out = append(out, h)
			continue
		}
		if h.start < r.start {
			out = append(out, lockRange{h.start, r.start - 1, h.typ})
		}
		if h.end > r.end {
			out = append(out, lockRange{r.end + 1, h.end, h.typ})
		}
	}
	if r.typ != unix.F_UNLCK {
		out = append(out, r)
	}
	return out
}
