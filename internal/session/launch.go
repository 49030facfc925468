package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
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

	keepReady bool // a process for each session to come

	readying sync.Mutex
	ready    *child // waits for the next session; may be nil
	closed   bool   // none is to be made ready any more
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
	// Both take a while, in which the machine can be found.
	go func() { _, _ = l.shield() }()
	go l.makeReady()
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
	l.endReady()
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
	c, err := l.child()
	if err != nil {
		return nil, err
	}
	if l.keepReady {
		defer time.AfterFunc(readyAfter, l.makeReady)
	}
	s := &Session{Info: info, Process: c.process}
	s.PID = c.process.PID
	control := c.control
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

	req := request{
		Info: info, Caller: spec.Caller, Results: l.results, Image: requestImage(spec.Image), Command: spec.Command,
		Shell: spec.Shell, Env: spec.Env, CallerEnv: spec.CallerEnv, Dir: spec.Dir,
		Strict: spec.Strict, Capabilities: spec.Capabilities, NoLabel: spec.NoLabel, NoWatch: spec.NoWatch, Terminal: spec.Terminal, Rows: spec.Rows, Columns: spec.Columns,
	}
	if l.systemd != nil {
		s.Scope = units.ScopeName(m.Name, s.ID)
		req.Scope = s.Scope
	}
	with := descriptors{leader: m.Leader.File, status: spec.Status, stdio: spec.Stdio}
	if up, err := l.shield(); err == nil {
		req.Shielded, with.sessions, with.shield = true, up.Sessions, up.Link
	}
	if i := spec.Image; i != nil && i.Machine != nil {
		with.image = i.Machine.Leader.File
	}
	if err := req.send(control, with); err != nil {
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
	_ = json.NewEncoder(control).Encode(proceed{FewTasks: room >= 0 && room < fewTasks})
	s.Terminal, err = receiveReply(control)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("starting the session: %w", ctx.Err())
	}
	return s, err
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
