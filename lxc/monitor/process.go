package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// leader finds the container's first process: a child of the process that has the command socket, and
// process 1 of a pid namespace. It does not ask the monitor.
func (c Container) leader(ctx context.Context) (*machine.Leader, error) {
	monitors, err := c.holders(ctx)
	if err != nil {
		return nil, err
	}
	// A monitor that has just made the container's process may have the socket in both.
	for _, pid := range monitors {
		for _, child := range machine.Children(pid) {
			s, err := machine.StatusOf(child)
			if err != nil || !s.First() {
				continue
			}
			l, err := machine.OpenLeader(child)
			if err != nil {
				continue // it ended meanwhile
			}
			if err := c.Verify(l); err != nil {
				_ = l.Close()
				return nil, err
			}
			return l, nil
		}
	}
	return nil, c.NotRunning("is starting or stopping")
}

// holders returns the processes of the container's user that have its command socket.
func (c Container) holders(ctx context.Context) ([]int, error) {
	return machine.Processes(ctx, func(pid int) bool {
		if pid == os.Getpid() {
			return false
		}
		s, err := machine.StatusOf(pid)
		return err == nil && s.UID == c.UID && c.heldBy(pid)
	})
}

// heldBy reports whether a process has the container's command socket. To look at another user's
// descriptors, or those of a process that is not dumpable, takes CAP_SYS_PTRACE.
func (c Container) heldBy(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	socket := fmt.Sprintf("socket:[%d]", c.inode)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		target, err := os.Readlink(dir + "/" + e.Name())
		return err == nil && target == socket
	})
}

// Verify makes sure that a process is the container's to give away: a child of its monitor, a process of
// the right user that has the command socket; and that it is in a container. A container that has ended
// meanwhile is fail.NotRunning.
func (c Container) Verify(l *machine.Leader) error {
	err := c.verify(l)
	if !l.Alive() || errors.Is(err, fs.ErrNotExist) {
		return c.NotRunning("has just ended")
	}
	return err
}

func (c Container) verify(l *machine.Leader) error {
	s, err := machine.StatusOf(l.PID)
	if err != nil {
		return err
	}
	monitor, err := machine.OpenLeader(s.Parent)
	if fail.Is(err, fail.NotRunning) {
		return c.NotRunning("has lost its monitor")
	}
	if err != nil {
		return err
	}
	defer monitor.Close()
	above, err := machine.StatusOf(monitor.PID)
	if err != nil {
		return err
	}
	again, err := machine.StatusOf(l.PID)
	if err != nil {
		return err
	}
	its := above.UID == c.UID && c.heldBy(monitor.PID) && monitor.Alive() && again.Parent == monitor.PID
	if !its {
		return fail.New(fail.NotRunning, c.startHint(), "process %d is not the leader of LXC container %q (any more)",
			l.PID, c.Ref())
	}
	// A container that shares the host's network can make abstract sockets that look like the host's.
	for _, n := range []struct {
		pid  int
		kind string
		same bool
		why  string
	}{
		{monitor.PID, "pid", true, "its monitor, process %d, is itself in a container"},
		{l.PID, "mnt", false, "its leader, process %d, has the host's mounts"},
	} {
		same, err := machine.SharesWithHost(n.pid, n.kind)
		if err != nil {
			return err
		}
		if same != n.same {
			return fail.New(fail.NotAContainer, "", "%q is not an LXC container: "+n.why, c.Ref(), n.pid)
		}
	}
	if c.UID == 0 {
		return nil
	}
	owner, err := machine.UserNamespaceOwner(l.PID)
	if err != nil {
		return err
	}
	if owner != c.UID {
		return fail.New(fail.NotAContainer, "", "%q is not a container of user %d: "+
			"the user namespace of its leader, process %d, belongs to user %d", c.Ref(), c.UID, l.PID, owner)
	}
	return nil
}
