package session

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/ns"
	"github.com/cntr-attach/cntr-attach/internal/shield"
)

// members tells who belongs to a session: whoever is in its control group; and where there is no
// systemd to make one, whoever is in its mount namespace.
type members struct {
	cgroup string // "/cntr.slice/cntr-web-1f2e3d4c.scope" as in /proc/PID/cgroup; or empty
	dir    string // the control group's directory

	reaperKnown chan struct{} // closed when reaper is set
	reaper      int
	foreign     [2]string // mount namespaces that are not the session's: the host's and the machine's
	once        sync.Mutex
	mount       string // the session's mount namespace; empty as long as it is not known

	known known
}

// ownMembers returns the members of this process's session. With a scope, this process must be in it: all
// that is in its control group is taken for the session's, and ends with it.
func ownMembers(scope string, leader int) (*members, error) {
	m := &members{reaperKnown: make(chan struct{})}
	if scope != "" {
		cgroup, err := cgroupOf(uint32(os.Getpid()))
		if err != nil {
			return nil, err
		}
		if filepath.Base(cgroup) != scope {
			return nil, fmt.Errorf("the session process is in control group %s, not in %s", cgroup, scope)
		}
		m.cgroup = cgroup
		m.dir, err = cgroupDir(cgroup)
		return m, err
	}
	for i, pid := range []int{os.Getpid(), leader} {
		mount, err := ns.MountNamespace(pid)
		if err != nil {
			return nil, err
		}
		m.foreign[i] = mount
	}
	return m, nil
}

// cgroupDir returns the directory of a control group in the unified hierarchy, wherever that is mounted
// (systemd's hybrid layout has it one level down).
func cgroupDir(cgroup string) (string, error) {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if err := unix.Statfs(mount, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return filepath.Join(mount, cgroup), nil
		}
	}
	return "", fmt.Errorf("no unified control group hierarchy is mounted at /sys/fs/cgroup")
}

// cgroupOf returns the control group of a process or thread in the unified hierarchy (cgroups(7)).
func cgroupOf(tid uint32) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", tid))
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(data) {
		if path, ok := bytes.CutPrefix(line, []byte("0::")); ok {
			return string(bytes.TrimSuffix(path, []byte("\n"))), nil
		}
	}
	return "", fmt.Errorf("process %d is in no unified control group", tid)
}

// openKill opens the control group's cgroup.kill (Linux 5.14); nil without a control group.
func (m *members) openKill() (*os.File, error) {
	if m.cgroup == "" {
		return nil, nil
	}
	return os.OpenFile(m.dir+"/cgroup.kill", os.O_WRONLY, 0)
}

// covered returns what the shield needs to know of the session.
func (m *members) covered(joined ns.Namespaces, leader int) (s shield.Session, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return s, fmt.Errorf("the pid namespace: %w", err)
	}
	s.PIDNamespace = uint32(st.Ino)
	if s.Cgroup, err = cgroupID(m.dir); err != nil || joined&unix.CLONE_NEWPID != 0 {
		return s, err
	}
	cgroup, err := cgroupOf(uint32(leader))
	if err != nil {
		return s, err
	}
	if strings.HasPrefix(m.cgroup, strings.TrimSuffix(cgroup, "/")+"/") {
		return s, nil // nothing tells the machine from the host
	}
	dir, err := cgroupDir(cgroup)
	if err != nil {
		return s, err
	}
	s.Machine, err = cgroupID(dir)
	return s, err
}

// cgroupID returns the number of a control group: on 64 bits, that of its directory's inode.
func cgroupID(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("control group %s: %w", dir, err)
	}
	return st.Ino, nil
}

// setReaper tells which process is the reaper.
func (m *members) setReaper(pid int) {
	m.reaper = pid
	close(m.reaperKnown)
}

// allows reports whether a thread that opens something belongs to the session.
func (m *members) allows(tid uint32) bool { return m.known.check(tid, m.has) }

// has reports whether a process or thread belongs to the session.
func (m *members) has(tid uint32) bool {
	if m.cgroup != "" {
		cgroup, err := cgroupOf(tid)
		return err == nil && (cgroup == m.cgroup || strings.HasPrefix(cgroup, m.cgroup+"/"))
	}
	<-m.reaperKnown // it opens nothing, so it never waits here for itself
	mount, err := ns.MountNamespace(int(tid))
	return err == nil && mount == m.mountNamespace()
}

// mountNamespace returns the session's mount namespace: the reaper's, once it has made it.
func (m *members) mountNamespace() string {
	m.once.Lock()
	defer m.once.Unlock()
	if m.mount == "" {
		mount, err := ns.MountNamespace(m.reaper)
		if err == nil && mount != m.foreign[0] && mount != m.foreign[1] {
			m.mount = mount
		}
	}
	if m.mount == "" {
		return "none yet"
	}
	return m.mount
}

// others returns the session's processes, without this one and the reaper.
func (m *members) others() ([]int, error) {
	var list []string
	if m.cgroup != "" {
		data, err := os.ReadFile(m.dir + "/cgroup.procs")
		if err != nil {
			return nil, err
		}
		list = strings.Fields(string(data))
	} else {
		names, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			list = append(list, filepath.Base(n))
		}
	}
	var pids []int
	for _, s := range list {
		pid, err := strconv.Atoi(s)
		if err != nil || pid == os.Getpid() || pid == m.reaper {
			continue
		}
		if m.cgroup != "" || m.has(uint32(pid)) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killOthers kills the session's processes, but for this one and the reaper, and waits until they
// are dead, at most for the time given. Processes that are born meanwhile are killed too.
func (m *members) killOthers(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		pids, err := m.others()
		if err != nil || len(pids) == 0 {
			return err
		}
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			return fmt.Errorf("processes %v do not die", pids)
		}
		var dying []unix.PollFd
		for _, pid := range pids {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // gone meanwhile
			}
			// Now that it is held: is it still the one that was listed?
			if m.has(uint32(pid)) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
				dying = append(dying, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			} else {
				_ = unix.Close(fd)
			}
		}
		for i := range dying {
			_, _ = unix.Poll(dying[i:i+1], int(left)) // whatever comes of it, they are listed again
			_ = unix.Close(int(dying[i].Fd))
		}
	}
}

// signalOthers sends a signal to the session's processes, as far as they can be found.
func (m *members) signalOthers(signal unix.Signal) {
	pids, _ := m.others() // what is left is killed a little later
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			if m.has(uint32(pid)) {
				_ = unix.PidfdSendSignal(fd, signal, nil, 0)
			}
			_ = unix.Close(fd)
		}
	}
}
