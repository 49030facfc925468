package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// All that is read here by process id is vouched for by a pidfd that was opened before and is still alive
// afterwards: as long as a process lives its number is not given away.

// status is what is used of /proc/PID/status.
type status struct {
	parent int
	uid    uint32 // real
	nspid  []int  // its numbers in each pid namespace from the reader's down
}

func statusOf(pid int) (status, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return status{}, err
	}
	return parseStatus(string(data))
}

// parseStatus reads proc_pid_status(5). What a process can choose of it, its name, has no line breaks.
func parseStatus(text string) (status, error) {
	s := status{parent: -1}
	uid := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		var err error
		switch {
		case key == "PPid" && len(fields) == 1:
			s.parent, err = strconv.Atoi(fields[0])
		case key == "Uid" && len(fields) == 4:
			uid = fields[0]
		case key == "NSpid":
			s.nspid = nil
			for _, f := range fields {
				n, e := strconv.Atoi(f)
				s.nspid, err = append(s.nspid, n), errors.Join(err, e)
			}
		}
		if err != nil {
			return s, fmt.Errorf("line %q of a process's status: %w", line, err)
		}
	}
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil || s.parent < 0 || len(s.nspid) == 0 {
		return s, errors.New("a process's status lacks PPid, Uid or NSpid")
	}
	s.uid = uint32(n)
	return s, nil
}

// leader finds the container's first process: a child of the process that has the command socket, and
// process 1 of a pid namespace. It does not ask the monitor.
func (c Container) leader(ctx context.Context) (*machine.Leader, error) {
	monitors, err := c.holders(ctx)
	if err != nil {
		return nil, err
	}
	// A monitor that has just made the container's process may have the socket in both.
	for _, pid := range monitors {
		for _, child := range children(pid) {
			s, err := statusOf(child)
			if err != nil || len(s.nspid) < 2 || s.nspid[len(s.nspid)-1] != 1 {
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
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if s, err := statusOf(pid); err == nil && s.uid == c.UID && c.heldBy(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
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

// children returns a process's children. They are known by the thread that made them.
func children(pid int) []int {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range threads {
		list, err := os.ReadFile(dir + "/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(list)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
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
	s, err := statusOf(l.PID)
	if err != nil {
		return err
	}
	monitor, err := machine.OpenLeader(s.parent)
	if fail.Is(err, fail.NotRunning) {
		return c.NotRunning("has lost its monitor")
	}
	if err != nil {
		return err
	}
	defer monitor.Close()
	above, err := statusOf(monitor.PID)
	if err != nil {
		return err
	}
	again, err := statusOf(l.PID)
	if err != nil {
		return err
	}
	its := above.uid == c.UID && c.heldBy(monitor.PID) && monitor.Alive() && again.parent == monitor.PID
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
		same, err := sharesWithHost(n.pid, n.kind)
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
	owner, err := userNamespaceOwner(l.PID)
	if err != nil {
		return err
	}
	if owner != c.UID {
		return fail.New(fail.NotAContainer, "", "%q is not a container of user %d: "+
			"the user namespace of its leader, process %d, belongs to user %d", c.Ref(), c.UID, l.PID, owner)
	}
	return nil
}

// sharesWithHost reports whether a process is in the same namespace of a kind as the host's init.
func sharesWithHost(pid int, kind string) (bool, error) {
	host, err := os.Readlink("/proc/1/ns/" + kind)
	if err != nil {
		return false, err
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	return host == its, err
}

// userNamespaceOwner returns the user who made a process's user namespace, which for the host's own is
// root (NS_GET_OWNER_UID, Linux 4.11, NS_GET_USERNS(2)).
func userNamespaceOwner(pid int) (uint32, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	uid, err := unix.IoctlGetInt(int(f.Fd()), unix.NS_GET_OWNER_UID)
	if err != nil {
		return 0, fmt.Errorf("asking for the owner of process %d's user namespace: %w", pid, err)
	}
	return uint32(uid), nil
}
