package machine

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Leader is a machine's first process, held by a pidfd: a process id may be used again by somebody
// else's process, a pidfd never is. Whoever reads /proc/PID of a leader asks [Leader.Alive] afterwards;
// if it is, what was read was the leader's.
type Leader struct {
	PID  int      // in the namespace of the process that opened it
	File *os.File // the pidfd, close-on-exec; owned by the Leader
}

// OpenLeader holds on to process pid. It requires Linux 5.3 (pidfd_open). A process that is not there
// is fail.NotRunning.
func OpenLeader(pid int) (*Leader, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		// EINVAL: the id is a thread's, not a process's, or not positive.
		return nil, fail.New(fail.NotRunning, "", "no process has the id %d", pid)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open of process %d: %w", pid, err)
	}
	return &Leader{PID: pid, File: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Alive reports whether the process still runs. A zombie does not.
func (l *Leader) Alive() bool {
	return !l.Wait(0)
}

// Wait waits until the process has ended, at most d (forever if negative), and reports whether it has.
func (l *Leader) Wait(d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		ms := -1
		if d >= 0 {
			ms = int(max(0, time.Until(deadline).Milliseconds()))
		}
		// A pidfd polls readable once the process is a zombie (pidfd_open(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.File.Fd()), Events: unix.POLLIN}}, ms)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 1
	}
}

// Close closes the pidfd.
func (l *Leader) Close() error { return l.File.Close() }
