package ns

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process is the reaper of an entered machine, a child of the caller. It lives as long as anything
// that the command started.
type Process struct {
	PID    int
	status *os.File // the read end of the exit pipe
}

// Wait waits for the command to end and returns its wait status. It returns io.EOF if the reaper ended
// without having seen that: it was killed, and the command with it.
//
// An init that shuts a machine down asks all its processes to end before it does. The reaper has been
// asked, too, then, and stopping tells so.
func (p *Process) Wait() (status unix.WaitStatus, stopping bool, err error) {
	var b [unsafe.Sizeof(ending{})]byte
	if _, err := io.ReadFull(p.status, b[:]); err != nil {
		return 0, false, err
	}
	pending := binary.NativeEndian.Uint64(b[unsafe.Offsetof(ending{}.pending):])
	return unix.WaitStatus(binary.NativeEndian.Uint32(b[:])), pending&signals(unix.SIGTERM) != 0, nil
}

// Reap waits until nothing is left of what the command started, and lets go of the reaper.
func (p *Process) Reap() error {
	_, err := wait(p.PID)
	_ = p.status.Close() // only read from
	return err
}

// Kill kills the reaper. The command dies of it, for it asked to (PR_SET_PDEATHSIG), unless it has
// changed its identity since.
func (p *Process) Kill() error {
	// It is ours and not waited for: the id is still its own.
	return unix.Kill(p.PID, unix.SIGKILL)
}

// wait waits for a child of this process.
func wait(pid int) (unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("waiting for process %d: %w", pid, err)
		}
		return status, nil
	}
}

// DropInheritable empties the inheritable and ambient capability sets of the calling thread, and so of
// what it forks. The thread must be locked.
func DropInheritable() error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0 // capabilities(7): the ambient set follows
	if err := unix.Capset(header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
