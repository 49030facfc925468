package session

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// child is a session process that has no session yet: it waits for its request, and ends when its launcher closes
// the socket.
type child struct {
	process *machine.Leader
	control *net.UnixConn
}

// KeepReady has a session process wait for each session to come, and not for the first one alone: until it can take a
// request takes a quarter of the time that a session takes to start. It is called before the first Start.
func (l *Launcher) KeepReady() { l.keepReady = true }

// readyAfter is how long after the start of a session the process of the next one is started: not while a session that may be
// short needs the CPUs.
const readyAfter = 100 * time.Millisecond

// makeReady starts the process of the next session, if none waits.
func (l *Launcher) makeReady() {
	l.readying.Lock()
	defer l.readying.Unlock()
	if l.ready == nil && !l.closed {
		l.ready, _ = l.spawn() // who asks for a session tries again, and is told
	}
}

// Anticipate says that a session may be started soon. It does not wait.
//
// Before systemd can move a process into the control group of its scope the kernel waits for a grace period of RCU, which may
// take longer than all the rest; but not if a process was moved a moment ago, or somebody waits for that already
// (cgroup_attach_lock and rcu_sync_enter in Linux). So this process is moved to where it is.
func (l *Launcher) Anticipate() {
	if l.systemd == nil {
		return
	}
	go func() {
		cgroup, err := cgroupOf(uint32(os.Getpid()))
		if err != nil {
			return
		}
		if dir, err := cgroupDir(cgroup); err == nil {
			_ = os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0) // without, a session only starts later
		}
	}()
}

// child returns a process for a new session: the one that waits, or else a new one.
func (l *Launcher) child() (*child, error) {
	l.readying.Lock()
	c := l.ready
	l.ready = nil
	l.readying.Unlock()
	if c != nil {
		if c.process.Alive() {
			return c, nil
		}
		c.end()
	}
	return l.spawn()
}

// endReady ends the process that waits, and has none made any more.
func (l *Launcher) endReady() {
	l.readying.Lock()
	defer l.readying.Unlock()
	l.closed = true
	if l.ready != nil {
		l.ready.end()
		l.ready = nil
	}
}

// childEndLimit bounds the wait for the end of a process that does nothing.
const childEndLimit = time.Second

func (c *child) end() {
	_ = c.control.Close()
	_ = unix.PidfdSendSignal(int(c.process.File.Fd()), unix.SIGKILL, nil, 0) // it may have ended
	c.process.Wait(childEndLimit)
	_ = c.process.Close()
}

// spawn starts a session process.
func (l *Launcher) spawn() (*child, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	pidfd := -1
	cmd := &exec.Cmd{
		Path:        fmt.Sprintf("/proc/self/fd/%d", l.program.Fd()),
		Args:        []string{programName, strings.Repeat(" ", argumentsRoom)}, // see showArguments
		Dir:         "/",
		Env:         []string{"GOTRACEBACK=single"},
		Stderr:      os.Stderr,
		ExtraFiles:  []*os.File{theirs}, // fdControl
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if err := cmd.Start(); err != nil {
		closeAll(ours)
		return nil, fmt.Errorf("starting the session process: %w", err)
	}
	go func() { _ = cmd.Wait() }() // its exit status tells nothing that the status pipe does not
	c := &child{process: &machine.Leader{PID: cmd.Process.Pid, File: os.NewFile(uintptr(pidfd), "pidfd")}}
	conn, err := net.FileConn(ours)
	closeAll(ours)
	if err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = c.process.Close()
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	c.control = conn.(*net.UnixConn)
	return c, nil
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}
