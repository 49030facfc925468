package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// All that is read here by process id is vouched for by a pidfd that was opened before and is still alive
// afterwards: as long as a process lives its number is not given away.

// Processes returns the processes of the caller's pid namespace for which is reports true.
func Processes(ctx context.Context, is func(pid int) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if pid, err := strconv.Atoi(e.Name()); err == nil && is(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Status is what is used of /proc/PID/status.
type Status struct {
	Parent int
	UID    uint32 // real
	NSPID  []int  // its numbers in each pid namespace from the reader's down; never empty
}

// First reports whether the process is process 1 of a pid namespace below the reader's.
func (s Status) First() bool { return len(s.NSPID) > 1 && s.NSPID[len(s.NSPID)-1] == 1 }

// StatusOf reads a process's status. One that is not there is fs.ErrNotExist.
func StatusOf(pid int) (Status, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Status{}, err
	}
	return parseStatus(string(data))
}

// parseStatus reads proc_pid_status(5). What a process can choose of it, its name, has no line breaks.
func parseStatus(text string) (Status, error) {
	s := Status{Parent: -1}
	uid := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		var err error
		switch {
		case key == "PPid" && len(fields) == 1:
			s.Parent, err = strconv.Atoi(fields[0])
		case key == "Uid" && len(fields) == 4:
			uid = fields[0]
		case key == "NSpid":
			s.NSPID = nil
			for _, f := range fields {
				n, e := strconv.Atoi(f)
				s.NSPID, err = append(s.NSPID, n), errors.Join(err, e)
			}
		}
		if err != nil {
			return s, fmt.Errorf("line %q of a process's status: %w", line, err)
		}
	}
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil || s.Parent < 0 || len(s.NSPID) == 0 {
		return s, errors.New("a process's status lacks PPid, Uid or NSpid")
	}
	s.UID = uint32(n)
	return s, nil
}

// Children returns a process's children, of all its threads; those that it adopted are of its first.
func Children(pid int) []int {
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

// SharesWithHost reports whether a process is in the same namespace of a kind ("mnt", "pid", …) as the
// host's init. To ask about another user's process takes CAP_SYS_PTRACE (proc_pid_ns(5)).
func SharesWithHost(pid int, kind string) (bool, error) {
	host, err := os.Readlink("/proc/1/ns/" + kind)
	if err != nil {
		return false, err
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	return host == its, err
}

// UserNamespaceOwner returns the user who made a process's user namespace, which for the host's own is
// root (NS_GET_OWNER_UID, Linux 4.11, NS_GET_USERNS(2)).
func UserNamespaceOwner(pid int) (uint32, error) {
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
