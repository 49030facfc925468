package machine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
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

// AdoptLeader makes a pidfd that somebody else has opened a leader. It takes the file over, and closes it
// if it cannot be one. A process that has ended is fail.NotRunning.
func AdoptLeader(pidfd *os.File) (*Leader, error) {
	pid, err := pidOf(pidfd)
	if err == nil && pid <= 0 {
		err = fail.New(fail.NotRunning, "", "the process has ended")
	}
	if err != nil {
		_ = pidfd.Close()
		return nil, err
	}
	unix.CloseOnExec(int(pidfd.Fd()))
	return &Leader{PID: pid, File: pidfd}, nil
}

// pidOf returns the number of a pidfd's process: -1 if it has ended and was waited for, 0 if it is not in
// the pid namespace of /proc (proc_pid_fdinfo(5)).
func pidOf(pidfd *os.File) (int, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, found := strings.CutPrefix(line, "Pid:"); found {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("the descriptor is not a pidfd")
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

// HoldLeader is OpenLeader for a pidfd that stays its owner's.
func HoldLeader(pidfd *os.File) (*Leader, error) {
	fd, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating a pidfd: %w", err)
	}
	return AdoptLeader(os.NewFile(uintptr(fd), "pidfd"))
}
