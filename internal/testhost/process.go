package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A process is one that this package started. Its number alone is no proof: numbers are used again, so
// it is the same only if it was started at the same tick (proc_pid_stat(5), field 22) of the same boot.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
}

// identify records a running process.
func identify(pid int) (process, error) {
	start, err := startTime(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Boot: string(bytes.TrimSpace(boot))}, nil
}

// open returns a pidfd (Linux 5.3) for the process; ok is false if it is gone. The descriptor is opened
// first and the identity compared after, so a later reuse of the number cannot be mistaken for it.
func (p process) open() (fd int, ok bool) {
	if p.PID <= 0 {
		return -1, false
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1, false
	}
	if now, err := identify(p.PID); err != nil || now != p {
		unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// alive says whether the process still runs.
func (p process) alive() bool {
	fd, ok := p.open()
	if !ok {
		return false
	}
	defer unix.Close(fd)
	// A zombie still has its number and its start time, but its pidfd is readable.
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 0
}

// kill ends the process with SIGKILL and waits until it is gone. The first process of a pid namespace
// takes the whole namespace with it, and is gone only when all the others are. If it is not gone after
// some patience, unstick is called.
func (p process) kill(ctx context.Context, patience time.Duration, unstick func() error) error {
	fd, ok := p.open()
	if !ok {
		return nil
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.waitFD(patient, fd) == nil {
		return nil
	}
	if err := unstick(); err != nil {
		return err
	}
	return p.waitFD(ctx, fd)
}

// waitOrKill gives the process some time to end by itself.
func (p process) waitOrKill(ctx context.Context, patience time.Duration) error {
	fd, ok := p.open()
	if !ok {
		return nil
	}
	defer unix.Close(fd)
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.waitFD(patient, fd) == nil {
		return nil
	}
	return p.kill(ctx, patience, func() error { return nil })
}

// waitFD waits for the pidfd to become readable, which it does when the process has ended.
func (p process) waitFD(ctx context.Context, fd int) error {
	for {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Now().Add(time.Minute)
		}
		left := time.Until(deadline)
		if left <= 0 || ctx.Err() != nil {
			return fmt.Errorf("process %d has not ended: %w", p.PID, context.DeadlineExceeded)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
		if n > 0 {
			return nil
		}
	}
}

// startTime is when a process was started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(stat)
}

func parseStartTime(stat []byte) (uint64, error) {
	field, err := statField(stat, 22)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(field, 10, 64)
}

func parseParent(stat []byte) (int, error) {
	field, err := statField(stat, 4)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(field)
}

// statField returns a field of /proc/PID/stat by its number in proc_pid_stat(5), 3 or higher. Field 2, the
// name, may hold spaces and brackets, so counting starts behind the last bracket.
func statField(stat []byte, number int) (string, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < number-2 {
		return "", fmt.Errorf("no field %d in %q", number, stat)
	}
	return string(fields[number-3]), nil
}

// liveChildren are the processes whose parent is p, none if p is gone.
func (p process) liveChildren() []process {
	if !p.alive() {
		return nil
	}
	var found []process
	for _, pid := range descendants(p.PID) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		if parent, err := parseParent(stat); err != nil || parent != p.PID {
			continue
		}
		if child, err := identify(pid); err == nil {
			found = append(found, child)
		}
	}
	return found
}
