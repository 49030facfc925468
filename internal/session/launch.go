package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/shield"
	"github.com/cntr-attach/cntr-attach/units"
)

// Slice holds the scopes of all sessions, so that an admin can limit them together.
const Slice = "cntr.slice"

// stopLimit bounds the wait for the end of a session that could not start.
const stopLimit = 3 * time.Second

// Launcher starts session processes.
type Launcher struct {
	program *os.File // sealed copy of the program that becomes a session
	systemd *units.Systemd
	shield  func() (*shield.Shield, error) // waits for it
	results string                         // where sessions leave their ends; may be empty
}

// NewLauncher prepares to start sessions with the program at path. With systemd nil, sessions get no
// scope. The caller keeps systemd.
func NewLauncher(path string, systemd *units.Systemd) (*Launcher, error) {
	program, err := sealProgram(path)
	if err != nil {
		return nil, fmt.Errorf("preparing the session program: %w", err)
	}
	l := &Launcher{program: program, systemd: systemd, shield: sync.OnceValues(func() (*shield.Shield, error) {
		if systemd == nil {
			return nil, fail.New(fail.NotSupported, "", "without systemd, sessions have no control group to be told by")
		}
		return shield.Load()
	})}
	go func() { _, _ = l.shield() }() // it takes a while, in which the machine can be found
	return l, nil
}

// Shielded tells why sessions cannot be kept from being taken over by the machines' root; nil if they are. See
// package shield.
func (l *Launcher) Shielded() error {
	_, err := l.shield()
	return err
}

// Close lets go of the program, and of the shield, which stays up for the sessions that run.
func (l *Launcher) Close() error {
	if s, err := l.shield(); err == nil {
		_ = s.Close() // only descriptors
	}
	return l.program.Close()
}

// Start starts a session in m, which stays the caller's. It returns once the command has been executed,
// or with the reason why it could not be; then nothing of the session is left.
func (l *Launcher) Start(ctx context.Context, m *machine.Machine, spec Spec) (_ *Session, err error) {
	if len(spec.Command) == 0 {
		return nil, fail.New(fail.InvalidArgument, "", "no command was given")
	}
	if len(spec.Properties) > 0 && l.systemd == nil {
		return nil, fail.New(fail.NotSupported, "leave out --property", "without systemd, a session has no properties")
	}
	info := Info{
		ID: newID(), Machine: m.Ref(), Class: m.Class, Service: m.Service, Leader: m.Leader.PID,
		Owner: spec.Caller.uid(), User: spec.User,
		Command: abridged(spec.Command), Image: spec.Image.String(), Writable: spec.Writable, TTY: spec.Terminal, Started: time.Now(),
	}
	if info.User == "" {
		info.User = "root"
	}
	s := &Session{Info: info}
	control, err := l.spawn(s, m, spec)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	defer func() {
		if err != nil {
			_ = unix.PidfdSendSignal(int(s.Process.File.Fd()), unix.SIGKILL, nil, 0) // it may have ended
			if s.Scope != "" {
				// A scope whose process ended before it got there never runs empty. One whose process hangs in
				// the kernel, in a file system of the machine, is left to systemd.
				stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
				if errStop := l.systemd.StopUnit(stop, s.Scope); !errors.Is(errStop, context.DeadlineExceeded) {
					err = errors.Join(err, errStop)
				}
				cancel()
			}
			closeAll(s.Process.File, s.Terminal)
		}
	}()
	// A call that is cancelled must not wait for a session process that hangs.
	defer context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Now()) })()

	lines := json.NewEncoder(control)
	req := request{
		Info: info, Caller: spec.Caller, Results: l.results, Image: requestImage(spec.Image), Command: spec.Command,
		Shell: spec.Shell, Env: spec.Env, CallerEnv: spec.CallerEnv, Dir: spec.Dir,
		Strict: spec.Strict, Capabilities: spec.Capabilities, NoLabel: spec.NoLabel, NoWatch: spec.NoWatch, Terminal: spec.Terminal, Rows: spec.Rows, Columns: spec.Columns,
		Shielded: l.Shielded() == nil,
	}
	if l.systemd != nil {
		s.Scope = units.ScopeName(m.Name, s.ID)
		req.Scope = s.Scope
	}
	if err := lines.Encode(req); err != nil {
		return nil, fmt.Errorf("talking to the session process: %w", err)
	}
	if l.systemd != nil {
		if err := l.scope(ctx, s, spec.Properties); err != nil && s.Process.Alive() {
			return nil, err
		}
	}
	room, err := checkTasks(s.PID)
	if err != nil && s.Process.Alive() {
		return nil, err
	}
	// A session process that found something wrong has ended by now, and told why.
	_ = lines.Encode(proceed{FewTasks: room >= 0 && room < fewTasks})
	s.Terminal, err = receiveReply(control)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("starting the session: %w", ctx.Err())
	}
	return s, err
}

// spawn starts the session process. It fills in s's process and returns the control socket.
func (l *Launcher) spawn(s *Session, m *machine.Machine, spec Spec) (*net.UnixConn, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	pidfd := -1
	cmd := &exec.Cmd{
		Path:   fmt.Sprintf("/proc/self/fd/%d", l.program.Fd()),
		Args:   s.arguments(),
		Dir:    "/",
		Env:    []string{"GOTRACEBACK=single"},
		Stderr: os.Stderr,
		// In the order of fdControl and its siblings.
		ExtraFiles:  []*os.File{theirs, m.Leader.File, spec.Status, nil, nil, nil},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if s, err := l.shield(); err == nil {
		cmd.ExtraFiles[fdSessions-fdControl], cmd.ExtraFiles[fdShield-fdControl] = s.Sessions, s.Link
	}
	if i := spec.Image; i != nil && i.Machine != nil {
		cmd.ExtraFiles[fdImage-fdControl] = i.Machine.Leader.File
	}
	if !spec.Terminal {
		cmd.ExtraFiles = append(cmd.ExtraFiles, spec.Stdio[:]...)
	}
	if err := cmd.Start(); err != nil {
		closeAll(ours)
		return nil, fmt.Errorf("starting the session process: %w", err)
	}
	go func() { _ = cmd.Wait() }() // its exit status tells nothing that the status pipe does not
	s.PID = cmd.Process.Pid
	s.Process = &machine.Leader{PID: s.PID, File: os.NewFile(uintptr(pidfd), "pidfd")}
	conn, err := net.FileConn(ours)
	closeAll(ours)
	if err != nil {
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

func (l *Launcher) scope(ctx context.Context, s *Session, properties []units.Property) error {
	err := l.systemd.StartScope(ctx, units.Scope{
		Name:        s.Scope,
		Description: fmt.Sprintf("Session in %s as %s: %s", s.Machine, s.User, strings.Join(s.Command, " ")),
		Slice:       Slice,
		PIDFD:       s.Process.File,
		PID:         s.PID,
		Properties:  properties,
	})
	if err != nil {
		return fmt.Errorf("making the session's scope: %w", err)
	}
	return nil
}

// newID returns 8 hexadecimal digits.
func newID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (package crypto/rand)
	return hex.EncodeToString(b[:])
}

// abridged returns a command line short enough to be repeated wherever sessions are listed.
func abridged(command []string) []string {
	const most = 1024 // bytes
	var short []string
	left := most
	for _, arg := range command {
		if len(arg) > left {
			return append(short, strings.ToValidUTF8(arg[:left], "")+"…")
		}
		short = append(short, arg)
		left -= len(arg)
	}
	return short
}

// arguments is the session process's own command line. It is where a session is described: it is there
// as long as the session is, survives the service, and can be read by ps.
func (i *Info) arguments() []string {
	return append([]string{
		programName,
		"--id=" + i.ID,
		"--machine=" + i.Machine,
		"--class=" + i.Class,
		"--service=" + i.Service,
		"--leader=" + strconv.Itoa(i.Leader),
		"--owner=" + strconv.FormatUint(uint64(i.Owner), 10),
		"--user=" + i.User,
		"--image=" + i.Image,
		"--writable=" + strconv.FormatBool(i.Writable),
		"--tty=" + strconv.FormatBool(i.TTY),
		"--started=" + i.Started.Format(time.RFC3339Nano),
		"--",
	}, i.Command...)
}

// parseArguments is the reverse of arguments.
func parseArguments(args []string) (Info, error) {
	i := Info{Image: "host"} // of a launcher that knew no others
	if len(args) == 0 || args[0] != programName {
		return i, errors.New("not a session process")
	}
	var err error
	for n, arg := range args[1:] {
		if arg == "--" {
			i.Command = args[n+2:]
			return i, nil
		}
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "--id":
			i.ID = value
		case "--machine":
			i.Machine = value
		case "--class":
			i.Class = value
		case "--service":
			i.Service = value
		case "--leader":
			i.Leader, err = strconv.Atoi(value)
		case "--owner":
			i.Owner, err = parseID(value)
		case "--user":
			i.User = value
		case "--image":
			i.Image = value
		case "--writable":
			i.Writable, err = strconv.ParseBool(value)
		case "--tty":
			i.TTY, err = strconv.ParseBool(value)
		case "--started":
			i.Started, err = time.Parse(time.RFC3339Nano, value)
		}
		if err != nil {
			return i, fmt.Errorf("session argument %q: %w", arg, err)
		}
	}
	return i, errors.New("a session process without a command")
}
