package server

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/session"
)

// entry is a session that the server knows. Its descriptors are closed when the session has ended and
// nobody uses them any more.
type entry struct {
	*session.Session
	path    godbus.ObjectPath
	closing atomic.Bool // somebody is ending it

	use  sync.RWMutex // read-locked by who uses the descriptors
	gone bool         // they are closed; under use
}

// hold keeps the descriptors open until release, and reports whether they still are.
func (e *entry) hold() bool {
	e.use.RLock()
	if e.gone {
		e.use.RUnlock()
		return false
	}
	return true
}

func (e *entry) release() { e.use.RUnlock() }

// drop closes the descriptors once nobody uses them.
func (e *entry) drop() {
	e.use.Lock()
	defer e.use.Unlock()
	e.gone = true
	_ = e.Close()
}

// sessionTable holds the running sessions, and notices their end by their pidfds. It is made anew by
// every server: what runs is known to systemd and the kernel, not to the server.
type sessionTable struct {
	added, removed func(*entry)

	epoll int
	wake  *os.File // eventfd: the table is being closed
	done  chan struct{}

	mu      sync.Mutex
	byID    map[string]*entry
	byPIDFD map[int32]*entry
	leaving int // sessions that have ended and whose end is being told
}

// newSessionTable makes an empty table, which calls added and removed, one at a time for each session.
func newSessionTable(added, removed func(*entry)) (*sessionTable, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	t := &sessionTable{
		added: added, removed: removed,
		epoll: epoll, wake: os.NewFile(uintptr(wake), "eventfd"), done: make(chan struct{}),
		byID: make(map[string]*entry), byPIDFD: make(map[int32]*entry),
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &event); err != nil {
		_ = unix.Close(epoll)
		_ = t.wake.Close()
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	go t.watch()
	return t, nil
}

// close forgets the sessions, which go on.
func (t *sessionTable) close() {
	_, _ = t.wake.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) // cannot fail before 2⁶⁴−1 of them
	<-t.done
	_ = unix.Close(t.epoll)
	_ = t.wake.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.byID {
		e.drop()
	}
	clear(t.byID)
}

// add takes over a session, and returns its entry: the one that is there already, if the session was
// found in two ways.
func (t *sessionTable) add(s *session.Session) (*entry, error) {
	e := &entry{Session: s, path: sessionPath(s.ID)}
	if !e.path.IsValid() {
		return nil, fmt.Errorf("session with the impossible id %q", s.ID)
	}
	t.mu.Lock()
	if old, known := t.byID[s.ID]; known {
		t.mu.Unlock()
		_ = s.Close() // only descriptors
		return old, nil
	}
	fd := int32(s.Process.File.Fd())
	t.byID[s.ID], t.byPIDFD[fd] = e, e
	t.mu.Unlock()
	// Announced before it is watched, so that its end is not told first. An end that is past is
	// noticed all the same: epoll tells states, not changes.
	t.added(e)
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: fd}
	if err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, int(fd), &event); err != nil {
		t.remove(fd)
		return nil, fmt.Errorf("watching session %s: %w", s.ID, err)
	}
	return e, nil
}

// watch waits for the ends of sessions: a pidfd polls readable when its process is a zombie.
func (t *sessionTable) watch() {
	defer close(t.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(t.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // the descriptor is ours and open
		}
		for _, event := range events[:n] {
			if event.Fd == int32(t.wake.Fd()) {
				return
			}
			t.remove(event.Fd)
		}
	}
}

func (t *sessionTable) remove(fd int32) {
	t.mu.Lock()
	e := t.byPIDFD[fd]
	delete(t.byPIDFD, fd)
	delete(t.byID, e.ID)
	t.leaving++
	t.mu.Unlock()
	_ = unix.EpollCtl(t.epoll, unix.EPOLL_CTL_DEL, int(fd), nil)
	t.removed(e)
	t.mu.Lock()
	t.leaving--
	t.mu.Unlock()
	go e.drop()
}

func (t *sessionTable) get(id string) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

func (t *sessionTable) known(id string) bool { return t.get(id) != nil }

// list returns the sessions in the order in which they started.
func (t *sessionTable) list() []*entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*entry
	for _, e := range t.byID {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *entry) int {
		if c := a.Started.Compare(b.Started); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// count returns how many sessions there are.
func (t *sessionTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}

// countOf returns how many sessions there are, and how many of them are a user's.
func (t *sessionTable) countOf(uid uint32) (all, own int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.byID {
		if e.Owner == uid {
			own++
		}
	}
	return len(t.byID), own
}

// busy reports whether there is a session, or one whose end has not been told yet: a server that took
// itself for idle then would take the news along.
func (t *sessionTable) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)+t.leaving > 0
}
