package fuse

import (
	"encoding/binary"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A watcher is told by the host's kernel what changes in the tree (fanotify(7)), and tells the session's kernel what to ask
// for again. So names and attributes can be believed for long that would otherwise be asked for each second.
//
// Watched are directories, each from before the first thing in it is told: a mark on the inode of a directory tells of its
// names, and of attributes and content of what is in it. A mark on a whole file system would make all of the host's writers pay. What
// cannot be seen that way is believed no longer than without a watcher: files with several names, which may be changed by way
// of another directory; file systems that are changed elsewhere, as by an NFS server; whatever is beyond maxWatched. And a directory
// in which much goes on is given up for a while, so that those who are at work there do not pay either, see giveUp.
//
// An answer can cross an event on its way. Of names that are looked up for the first time the kernel takes care: an expiry waits
// until no lookup in the directory is under way. As to others: an answer is not believed for long if there were events while it was
// made, and what expires does so once more soon, and again in a second or two: server and client may wait that long for a CPU, the one
// with the answer in hand, the other before it takes it in. At the very worst, an answer is believed for Options.Watch.
//
// What the session itself changes by way of the file system its kernel knows already, and such events are passed over: they come
// from server threads. Not so where a directory is mounted several times: the kernel knows of the one that the session used. And a
// name that was moved takes along how long it is believed, to a directory that may not be watched: it is looked up again. Writes in
// passthrough are the writer's own, and treated as everybody's.
type watcher struct {
	group int // of fanotify; -1: there is none
	wakes int // eventfd(2)
	ended atomic.Bool

	mu   sync.Mutex
	dirs map[string][]*inode // watched directories, by file system and handle; several where it is mounted several times

	rounds atomic.Uint64 // of events that were read, and were not all the session's own
	busy   atomic.Bool   // such are being handled
	sender atomic.Pointer[transport]
	moved  []moved                // names to be looked up again; guarded by mu
	again  [][]byte               // notifications to be sent once more, soon
	late   [2]map[string]struct{} // and in a second or two: those of this second, and of the one before
	turned time.Time              // when that began
	mounts map[string]string      // mount points by mount number
	points map[string]int         // mount points whose names are to expire, and how often that is still tried
}

// watched is what there is to know of a watched directory.
type watched struct {
	active atomic.Bool
	listed atomic.Int64 // when the kernel last began to read it whole, in nanoseconds since 1970; 0: never
	until  atomic.Int64 // when it may be watched again, likewise

	begun  int64 // of counting events, likewise
	events int

	misses map[string]struct{} // names that the kernel was told not to be there, nil if given up; guarded by watcher.mu
}

// moved is where something in the session was moved to.
type moved struct {
	dir  *inode
	name string
}

// watching says whether changes in a directory are seen.
func (n *inode) watching() bool {
	w := n.watch.Load()
	return w != nil && w.active.Load()
}

// belief is what an answer is based on: a round of events. 0: there are none.
type belief uint64

const (
	maxWatched = 1 << 13 // directories; the kernel keeps each in memory
	roundGap   = 1       // milliseconds between rounds: a file that is written all the time must not cost a CPU. The kernel merges its events
	expireGap  = 10      // milliseconds until what expired does so once more,
	lateGap    = 1000    // and at least until it does so for the last time
	maxEvents  = 100     // of a directory in a second, or it is given up
	maxMisses  = 1 << 10 // in a directory

	watchedEvents = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO | unix.FAN_ATTRIB |
		unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE | unix.FAN_ONDIR | unix.FAN_EVENT_ON_CHILD
	nameEvents = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO

	// capHasExpireOnly is FUSE_HAS_EXPIRE_ONLY, which kernels from 6.2 on offer. Before, a name could only be dropped, and
	// with it whatever is mounted there.
	capHasExpireOnly = 1 << 35
)

// newWatcher returns a watcher, which watches nothing where fanotify is not to be had: it needs Linux 5.17, CAP_SYS_ADMIN,
// and one of fs.fanotify.max_user_groups.
func newWatcher(wanted bool) *watcher {
	w := &watcher{
		group: -1, wakes: -1, dirs: make(map[string][]*inode), points: make(map[string]int),
		late: [2]map[string]struct{}{{}, {}}, turned: time.Now(),
	}
	if !wanted {
		return w
	}
	var err error
	w.group, err = unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME_TARGET|
		unix.FAN_REPORT_TID, 0)
	if err != nil {
		w.group = -1
		return w
	}
	if w.wakes, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(w.group)
		w.group, w.wakes = -1, -1
	}
	return w
}

func (w *watcher) close() {
	if w.group >= 0 {
		unix.Close(w.group)
		unix.Close(w.wakes)
	}
}

// end ends watch.
func (w *watcher) end() {
	w.ended.Store(true)
	w.wake()
}

// wake has watch look whether there is something to do.
func (w *watcher) wake() {
	one := [8]byte{0: 1}
	_, _ = unix.Write(w.wakes, one[:])
}

// now is what an answer can be based on that is made from now on.
func (w *watcher) now() belief {
	if c := w.sender.Load(); c == nil || c.offers.Load()&capHasExpireOnly == 0 || w.busy.Load() {
		return 0
	}
	return belief(w.rounds.Load() + 1)
}

// holds says whether nothing is known to have happened since.
func (w *watcher) holds(b belief) bool { return b != 0 && w.now() == b }

// believe is now for what is in a directory, of which fd is a descriptor. It makes sure that the directory is watched.
func (fs *tree) believe(dir *inode, fd int) belief {
	w := fs.watcher
	if w.group < 0 || dir.made || !dir.watching() && !fs.watchDir(dir, fd) {
		return 0
	}
	return w.now()
}

// watchDir watches a directory if that can be.
func (fs *tree) watchDir(dir *inode, fd int) bool {
	w := fs.watcher
	// Local file systems with handles.
	if dir.mnt.flags&honestBirth == 0 || dir.handle == "" {
		return false
	}
	before := dir.watch.Load()
	if before != nil && time.Now().UnixNano() < before.until.Load() {
		return false
	}
	key := watchKey(dir)
	w.mu.Lock()
	defer w.mu.Unlock()
	if dir.watching() {
		return true
	}
	if len(w.dirs) >= maxWatched || unix.FanotifyMark(w.group, unix.FAN_MARK_ADD, watchedEvents, fd, ".") != nil {
		return false
	}
	if before == nil {
		w.dirs[key] = append(w.dirs[key], dir)
	}
	now := &watched{misses: make(map[string]struct{})}
	now.active.Store(true)
	dir.watch.Store(now)
	return true
}

// missed notes a name that is not there. It returns false if there are too many of them.
func (w *watcher) missed(dir *inode, name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := dir.watch.Load()
	if d == nil || d.misses == nil || len(d.misses) >= maxMisses {
		return false
	}
	d.misses[name] = struct{}{}
	return true
}

// watchKey is how events name a directory.
func watchKey(dir *inode) string { return string(dir.mnt.fsid[:]) + dir.handle }

// unwatch is called when the kernel forgets a watched directory.
func (fs *tree) unwatch(dir *inode) {
	w := fs.watcher
	key := watchKey(dir)
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.dirs[key]
	for i, n := range list {
		if n == dir {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) > 0 {
		w.dirs[key] = list
		return
	}
	delete(w.dirs, key)
	_ = fs.threads.with(capDACReadSearch, 0, func() error {
		fd, err := openHandle(dir.mnt.fd, dir.handle)
		if err != nil {
			return err // it is gone, and the mark with it
		}
		defer unix.Close(fd)
		return unix.FanotifyMark(w.group, unix.FAN_MARK_REMOVE, watchedEvents, fd, ".")
	})
}

// watch handles events until end is called. It runs on a server thread of its own.
func (fs *tree) watch() {
	w := fs.watcher
	buf := make([]byte, 64<<10)
	fds := []unix.PollFd{
		{Fd: int32(w.wakes), Events: unix.POLLIN}, {Fd: int32(w.group), Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLPRI},
	}
	// Not os.Open: whether there is news is known once, and the runtime's poller would be told.
	var table *os.File
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		table = os.NewFile(uintptr(fd), "mountinfo")
		defer table.Close()
		fds[2].Fd = int32(fd)
		w.mounts, err = readMounts(table)
	}
	if err != nil {
		w.sender.Store(nil) // nothing is believed
	}
	for {
		n, err := unix.Poll(fds, w.pause())
		if err == unix.EINTR || err == unix.ENOMEM {
			continue
		}
		if w.ended.Load() {
			w.sender.Store(nil)
			return
		}
		if n > 0 && fds[0].Revents != 0 {
			_, _ = unix.Read(w.wakes, buf) // it does not block
		}
		last := w.again
		w.again = nil
		if n > 0 && fds[2].Revents != 0 {
			w.busy.Store(true)
			fs.mountsChanged(table)
		}
		fs.expirePoints()
		if n > 0 && fds[1].Revents != 0 {
			if size, err := unix.Read(w.group, buf); err == nil {
				eachEvent(buf[:size], fs.changed)
			}
		}
		fs.expireMoved()
		if w.busy.Load() || len(w.again) > 0 {
			w.rounds.Add(1)
		}
		for _, m := range last {
			w.send(m)
			w.late[0][string(m)] = struct{}{}
		}
		for _, m := range w.again {
			w.send(m)
		}
		w.sendLate()
		w.busy.Store(false)
		if fds[1].Revents != 0 {
			_, _ = unix.Poll(fds[:1], roundGap)
		}
	}
}

// pause is how many milliseconds may pass if nothing happens; -1: any number.
func (w *watcher) pause() int {
	switch {
	case len(w.again) > 0 || len(w.points) > 0:
		return expireGap
	case len(w.late[0])+len(w.late[1]) > 0:
		return lateGap
	}
	return -1
}

// sendLate sends the notifications that are due for the last time.
func (w *watcher) sendLate() {
	now := time.Now()
	if now.Sub(w.turned) < lateGap*time.Millisecond {
		return
	}
	for m := range w.late[1] {
		w.send([]byte(m))
	}
	w.late = [2]map[string]struct{}{{}, w.late[0]}
	w.turned = now
}

// send sends a notification. The kernel refuses those of inodes that it does not know, or has forgotten (ENOENT).
func (w *watcher) send(m []byte) {
	if c := w.sender.Load(); c != nil {
		c.write(m)
	}
}

// Notifications, of linux/fuse.h.
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
	expireOnly       = 1 // FUSE_EXPIRE_ONLY
)

func notification(code, size int) []byte {
	m := make([]byte, outHeaderSize+size)
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	binary.NativeEndian.PutUint32(m[4:], uint32(code))
	return m
}

// expireInode makes the kernel ask for the attributes of an inode again, and read a directory again.
func (w *watcher) expireInode(n *inode) { w.again = append(w.again, expiry(n.node, n.isDir())) }

// expiry is the notification for expireInode.
func expiry(node uint64, dir bool) []byte {
	m := notification(notifyInvalInode, 24)
	binary.NativeEndian.PutUint64(m[outHeaderSize:], node)
	if !dir { // a negative offset: attributes only. The pages of a file are for its next open to judge
		binary.NativeEndian.PutUint64(m[outHeaderSize+8:], ^uint64(0))
	}
	return m
}

// expireName makes the kernel look up a name again.
func (w *watcher) expireName(dir *inode, name string) {
	m := notification(notifyInvalEntry, 16+len(name)+1)
	binary.NativeEndian.PutUint64(m[outHeaderSize:], dir.node)
	binary.NativeEndian.PutUint32(m[outHeaderSize+8:], uint32(len(name)))
	binary.NativeEndian.PutUint32(m[outHeaderSize+12:], expireOnly)
	copy(m[outHeaderSize+16:], name)
	w.again = append(w.again, m)
}

// hasMoved is called when the session has moved something from a directory to a name in another, or the same.
func (fs *tree) hasMoved(from, dir *inode, name string) {
	w := fs.watcher
	if from.watch.Load() == nil {
		return // nothing in it is believed for long
	}
	w.mu.Lock()
	w.moved = append(w.moved, moved{dir, name})
	w.mu.Unlock()
	w.wake()
}

// expireMoved makes the kernel look up again what was moved. Not by who moves it: the kernel has locked the directory until the
// answer.
func (fs *tree) expireMoved() {
	w := fs.watcher
	w.mu.Lock()
	list := w.moved
	w.moved = nil
	w.mu.Unlock()
	for _, m := range list {
		w.expireName(m.dir, m.name)
	}
}

// changed handles an event.
func (fs *tree) changed(e *event) {
	w := fs.watcher
	c := w.sender.Load()
	own := c != nil && c.serves(e.tid)
	w.mu.Lock()
	dirs := append([]*inode(nil), w.dirs[e.dir]...)
	if e.mask&unix.FAN_Q_OVERFLOW != 0 { // lost events are seen after Options.Watch, but for these
		for _, list := range w.dirs {
			dirs = append(dirs, list...)
		}
	}
	w.mu.Unlock()
	if own && len(dirs) < 2 && e.mask&(unix.FAN_MOVED_FROM|unix.FAN_MOVED_TO|unix.FAN_Q_OVERFLOW) == 0 {
		return
	}
	w.busy.Store(true)
	busy := false
	for _, dir := range dirs {
		busy = dir.watch.Load().tooMuch() || busy
	}
	for _, dir := range dirs {
		if !fs.mounts.hold(dir.mnt) {
			continue // forgotten meanwhile
		}
		if busy {
			fs.giveUp(dir)
		}
		if e.mask&nameEvents != 0 || e.name == "." || e.name == "" {
			w.expireInode(dir)
		}
		if e.mask&nameEvents != 0 {
			w.expireName(dir, e.name)
			w.mu.Lock()
			delete(dir.watch.Load().misses, e.name) // it is looked up again
			w.mu.Unlock()
		}
		if e.child != "" && e.name != "." {
			fs.childChanged(dir, e)
		}
		fs.mounts.put(dir.mnt)
	}
}

// tooMuch counts an event, and says whether there were too many.
func (d *watched) tooMuch() bool {
	now := time.Now().UnixNano()
	if now-d.begun > int64(time.Second) {
		d.begun, d.events = now, 0
	}
	d.events++
	return d.events == maxEvents
}

// giveUp stops watching a directory in which much goes on. All that is believed of it for long expires. What is in the queue of events
// is still handled.
func (fs *tree) giveUp(dir *inode) {
	w, d := fs.watcher, dir.watch.Load()
	d.until.Store(time.Now().UnixNano() + int64(min(fs.opts.Watch, WatchTimeout)))
	d.active.Store(false) // nothing is told from here on
	w.expireInode(dir)
	w.mu.Lock()
	misses := d.misses
	d.misses = nil
	w.mu.Unlock()
	// What cannot be listed is believed for Options.Watch at most.
	_ = fs.threads.with(capDACReadSearch, 0, func() error {
		fd, err := openHandle(dir.mnt.fd, dir.handle)
		if err != nil {
			return err // it is gone
		}
		defer unix.Close(fd)
		if err := unix.FanotifyMark(w.group, unix.FAN_MARK_REMOVE, watchedEvents, fd, "."); err != nil {
			return err
		}
		list, err := fs.reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(list), "directory")
		defer f.Close()
		names, err := f.Readdirnames(-1)
		for _, name := range names {
			delete(misses, name) // it was made since, and that was an event, or the session's own doing
			var stx unix.Statx_t
			// What is gone has had its event.
			if unix.Statx(list, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statxMask, &stx) != nil {
				continue
			}
			fs.inodes.withNumber(inoKey{dir.mnt, stx.Ino}, func(n *inode) {
				if n.named.Load() {
					w.expireName(dir, name)
				}
				if n.told.Swap(false) {
					w.expireInode(n)
				}
			})
		}
		return err
	})
	for name := range misses {
		w.expireName(dir, name)
	}
}

// childChanged handles what an event says of something in a directory.
func (fs *tree) childChanged(dir *inode, e *event) {
	handle := e.child[8:]
	var stx unix.Statx_t
	err := fs.threads.with(capDACReadSearch, 0, func() error {
		fd, err := openHandle(dir.mnt.fd, handle)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return statFD(fd, &stx)
	})
	if err != nil {
		// It is gone. Only who has it open can still see it.
		fs.opens.each(func(n *inode) {
			if n.handle == handle {
				fs.watcher.expireInode(n)
			}
		})
		return
	}
	n := fs.inodes.peek(inoKey{dir.mnt, stx.Ino}, []byte(handle))
	if n == nil {
		return
	}
	if e.mask&nameEvents != 0 { // it may have several names now, or one elsewhere
		n.told.Store(false)
	}
	fs.watcher.expireInode(n)
}

// each calls f for each inode that is open, or was a short while ago.
func (o *opens) each(f func(*inode)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := range o.states {
		f(n)
	}
}

// recently says whether a time, in nanoseconds since 1970, is so recent that what was told then is still believed, and for a
// while.
func (fs *tree) recently(at int64) bool {
	return at != 0 && time.Now().UnixNano()-at < int64(fs.opts.Watch-fs.opts.Watch/4)
}
