package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

const (
	// maxWatching is how many sessions at a time see the host's changes by fanotify(7). A user has 128 groups of it
	// (fs.fanotify.max_user_groups), and others need some too.
	maxWatching = 64

	// callTimeout bounds every call. Clients wait for 25 s as a rule.
	callTimeout = 20 * time.Second
	// startTimeout bounds what happens before the service is ready, and its farewell to the bus.
	startTimeout = 20 * time.Second
	// maxCalls bounds the calls that are being answered at a time, and userCalls those of one user who is not root.
	// The next one is refused.
	maxCalls  = 512
	userCalls = 32
)

// Sessions starts sessions, finds those that run, and ends them: [session.Launcher].
type Sessions interface {
	Start(context.Context, *machine.Machine, session.Spec) (*session.Session, error)
	Running(ctx context.Context, known func(id string) bool) ([]*session.Session, error)
	Terminate(context.Context, *session.Session) error
	Kill(*session.Session, unix.Signal) error
	Standing(*machine.Machine) (session.Standing, error)
	Usage(*session.Session) status.Usage
	Transport(*session.Session) string
	Anticipate()
	Result(id string) status.Status // of one that has ended, once
}

// Machines finds and lists machines: [machine.Registry].
type Machines interface {
	Find(ctx context.Context, name string) (*machine.Machine, []*machine.Failure, error)
	List(context.Context) ([]machine.Info, error)
}

// Images finds and lists images that are no machines: [image.Finder].
type Images interface {
	Find(context.Context, image.Ref) (*image.Image, error)
	List(context.Context) ([]image.Row, error)
}

// Config is what a server needs.
type Config struct {
	Images      Images
	Default     func(*machine.Machine) (image.Ref, error) // the image of who names none; nil is the host
	Machines    Machines
	Sessions    Sessions
	Version     string
	MaxSessions int           // at a time; 0 is DefaultMaxSessions
	UserMax     int           // of one user who is not root; 0 is DefaultUserMax
	IdleTimeout time.Duration // after which a server that has nothing to do ends; 0 is never
	Watchdog    time.Duration // how often the service manager is to be told that the server works; 0 is never
	Reload      <-chan os.Signal
	Log         *slog.Logger
	Notify      func(state string) // tells the service manager, see sd_notify(3)
}

// Limits on sessions that run at the same time.
const (
	DefaultMaxSessions = 1024
	DefaultUserMax     = 64
)

// server is org.cntr.Attach1.
type server struct {
	Config
	conn      *conn
	sessions  *sessionTable
	objects   objects
	life      context.Context // ends when the server is about to
	questions atomic.Uint64   // asked of polkit

	mu      sync.Mutex
	unique  string         // name on the bus
	calls   int            // being answered
	byUser  map[uint32]int // the same, of those whose caller is known
	begun   map[uint32]int // sessions that are being started, by the uid of whom they are for
	idle    time.Time      // since when there is nothing to do, if there is
	drained chan struct{}  // closed when calls is 0, once someone waits for that
}

// ErrTaken is what [Serve] fails with where the name on the bus is another's.
var ErrTaken = errors.New("another cntr-attachd runs")

// Serve answers calls until ctx is cancelled or there was nothing to do for the idle timeout, both of
// which end it in good order, with nil. Sessions go on, whatever becomes of it.
func Serve(ctx context.Context, config Config) error {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := connect(starting)
	if err != nil {
		return err
	}
	defer c.close()
	life, die := context.WithCancel(context.Background())
	defer die()
	s := &server{
		Config: config, conn: c, objects: newObjects(), idle: time.Now(), life: life,
		byUser: make(map[uint32]int), begun: make(map[uint32]int),
	}
	if s.MaxSessions == 0 {
		s.MaxSessions = DefaultMaxSessions
	}
	if s.UserMax == 0 {
		s.UserMax = DefaultUserMax
	}
	s.sessions, err = newSessionTable(s.sessionNew, s.sessionRemoved)
	if err != nil {
		return err
	}
	defer s.sessions.close()

	ended := make(chan error, 1)
	go func() { ended <- c.read(s.begin) }()
	if err := s.start(starting); err != nil {
		return err
	}
	s.Notify("READY=1\nSTATUS=" + s.status())
	if s.Watchdog > 0 {
		go s.watchdog(life)
	}
	again, err := s.wait(ctx, ended)
	if err != nil {
		return err
	}
	die() // nobody is waited for who is to type a password
	return s.stop(again)
}

// start says Hello, finds the sessions of an earlier server, and takes the name, in this order: the bus
// holds back calls to an activated service until it has its name.
func (s *server) start(ctx context.Context) error {
	var unique string
	if err := s.conn.call(ctx, "Hello", nil, &unique); err != nil {
		return err
	}
	s.mu.Lock()
	s.unique = unique
	s.mu.Unlock()
	if err := s.refresh(ctx); err != nil {
		return fmt.Errorf("finding the running sessions: %w", err)
	}
	var result uint32
	args := []any{dbus.Name, uint32(godbus.NameFlagDoNotQueue)}
	if err := s.conn.call(ctx, "RequestName", args, &result); err != nil {
		return fmt.Errorf("taking the name %s: %w", dbus.Name, err)
	}
	if godbus.RequestNameReply(result) != godbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("the name %s is taken: %w", dbus.Name, ErrTaken)
	}
	return nil
}

// wait returns when the server is to stop; again is true if it may be needed again soon.
func (s *server) wait(ctx context.Context, ended <-chan error) (again bool, err error) {
	timer := time.NewTimer(s.IdleTimeout)
	if s.IdleTimeout == 0 {
		timer.Stop()
	}
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case err := <-ended:
			return false, err
		case <-s.Reload:
			s.reload()
		case <-timer.C:
			left := s.idleLeft()
			if left <= 0 {
				return true, nil
			}
			timer.Reset(left)
		}
	}
}

// idleLeft returns how long there must be nothing to do until the server may end.
func (s *server) idleLeft() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls > 0 || s.sessions.busy() {
		return s.IdleTimeout
	}
	return time.Until(s.idle.Add(s.IdleTimeout))
}

// stop ends the service without losing a call. STOPPING=1 makes systemd regard the service as being
// stopped, so that a start that the bus asks for from now on waits for our end and then starts it
// anew. With the name released such a start is what every later call leads to. What came before has
// been read by the time the bus confirms the release, and is still answered.
//
// A session may have been started by one of these last calls. Then somebody will want to hear of its
// end, and a new server takes over.
func (s *server) stop(again bool) error {
	s.Notify("STOPPING=1\nSTATUS=Stopping…")
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var result uint32
	if err := s.conn.call(ctx, "ReleaseName", []any{dbus.Name}, &result); err != nil {
		return fmt.Errorf("releasing the name %s: %w", dbus.Name, err)
	}
	select {
	case <-s.whenDrained():
	case <-ctx.Done():
		return errors.New("gave up waiting for the last calls to be answered")
	}
	if again && s.sessions.count() > 0 {
		m := busCall("StartServiceByName", []any{dbus.Name, uint32(0)})
		m.Flags = godbus.FlagNoReplyExpected
		if _, err := s.conn.send(m, nil); err != nil {
			return err
		}
	}
	return nil
}

// begin is called for each call that arrives, in order, and owns it.
func (s *server) begin(m *message) {
	if s.isOwn(m) {
		go s.respond(m)
		return
	}
	s.mu.Lock()
	s.calls++
	busy := s.calls > maxCalls
	s.mu.Unlock()
	if busy {
		defer s.end()
		s.finish(m, nil, protocolError("LimitsExceeded", "too many calls at a time"))
		return
	}
	go func() {
		defer s.end()
		s.respond(m)
	}()
}

// respond does what a call asks for and answers it.
func (s *server) respond(m *message) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	body, err := s.answer(ctx, m)
	s.finish(m, body, err)
}

// finish answers a call and lets go of it.
func (s *server) finish(m *message, body []any, err error) {
	defer m.close()
	if err != nil {
		reply, internal := encodeError(err)
		if internal {
			s.Log.Error("Call failed", "member", member(m), "sender", sender(m), "error", err)
		}
		err = s.conn.refuse(m, reply)
	} else {
		err = s.conn.reply(m, body)
	}
	if err != nil {
		s.Log.Warn("Cannot answer", "member", member(m), "sender", sender(m), "error", err)
	}
}

func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls--
	s.idle = time.Now()
	if s.calls == 0 && s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// whenDrained returns a channel that is closed when all calls have been answered.
func (s *server) whenDrained() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan struct{})
	if s.calls == 0 {
		close(ch)
	} else {
		s.drained = ch
	}
	return ch
}

// answer finds the method and calls it. A panic is the caller's failed call and a line in the journal,
// not the end of the service.
func (s *server) answer(ctx context.Context, m *message) (body []any, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	if m.truncated {
		return nil, protocolError("LimitsExceeded", "too many open files")
	}
	method, err := s.lookup(m)
	if err != nil {
		return nil, err
	}
	caller, err := s.caller(ctx, m)
	if err != nil {
		return nil, err
	}
	leave, err := s.admit(caller)
	if err != nil {
		return nil, err
	}
	defer leave()
	if method.action != "" {
		if err := s.authorize(ctx, caller, method.action, nil); err != nil {
			return nil, err
		}
		var cancel context.CancelFunc
		ctx, cancel = renewed(ctx)
		defer cancel()
	}
	if m.received > method.files {
		return nil, protocolError("InvalidArgs", "%s takes %d descriptors at most, not %d",
			member(m), method.files, m.received)
	}
	signature, _ := m.Headers[godbus.FieldSignature].Value().(godbus.Signature)
	if got := signature.String(); got != method.in {
		return nil, protocolError("InvalidArgs", "%s takes arguments of type %q, not %q", member(m), method.in, got)
	}
	return method.call(s, ctx, caller, m)
}

// admit counts a call of the caller's until leave is called.
func (s *server) admit(who caller) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byUser[who.uid] >= userCalls && !who.trusted() {
		return nil, fail.New(fail.LimitsExceeded, "wait for the others to be answered",
			"too many calls of user %d at a time (%d)", who.uid, userCalls)
	}
	s.byUser[who.uid]++
	return func() { s.count(s.byUser, who.uid, -1) }, nil
}

// reserve keeps room for a session of the caller's until done is called.
func (s *server) reserve(who caller) (done func(), err error) {
	all, own := s.sessions.countOf(who.uid)
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, n := range s.begun {
		all += n
		if uid == who.uid {
			own += n
		}
	}
	switch {
	case all >= s.MaxSessions:
		return nil, fail.New(fail.LimitsExceeded, "cntrctl sessions shows them", "there are %d sessions already, and no more are allowed", all)
	case own >= s.UserMax && !who.trusted():
		return nil, fail.New(fail.LimitsExceeded, "end one of them first",
			"user %d has %d sessions already, and no more are allowed", who.uid, own)
	}
	s.begun[who.uid]++
	return func() { s.count(s.begun, who.uid, -1) }, nil
}

func (s *server) count(of map[uint32]int, uid uint32, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of[uid] += n; of[uid] == 0 {
		delete(of, uid)
	}
}

func (s *server) status() string {
	switch n := s.sessions.count(); n {
	case 0:
		return "No sessions"
	case 1:
		return "1 session"
	default:
		return fmt.Sprintf("%d sessions", n)
	}
}

func (s *server) sessionNew(e *entry) {
	// Signals go to everybody on the bus. More is for those who may inspect.
	s.emit(dbus.ManagerPath, dbus.ManagerInterface, "SessionNew", e.ID, e.path)
	added := map[string]map[string]godbus.Variant{dbus.SessionInterface: publicProperties(e)}
	s.emit(dbus.ManagerPath, objectManager, "InterfacesAdded", e.path, added)
	s.Notify("STATUS=" + s.status())
}

func (s *server) sessionRemoved(e *entry) {
	s.mu.Lock()
	s.idle = time.Now()
	s.mu.Unlock()
	end := s.Sessions.Result(e.ID)
	s.emit(dbus.ManagerPath, dbus.ManagerInterface, "SessionRemoved", e.ID, e.path, resultDetails(end))
	s.emit(dbus.ManagerPath, objectManager, "InterfacesRemoved", e.path, []string{dbus.SessionInterface})
	s.Notify("STATUS=" + s.status())
}

// resultDetails is what SessionRemoved tells of an end.
func resultDetails(end status.Status) map[string]godbus.Variant {
	details := map[string]godbus.Variant{
		"Result":     godbus.MakeVariant(end.Result()),
		"ExitStatus": godbus.MakeVariant(int32(end.ExitCode())),
		"WallUSec":   godbus.MakeVariant(uint64(end.Wall.Microseconds())),
	}
	if u := end.Usage; u != nil {
		details["CPUUsageNSec"] = godbus.MakeVariant(u.CPUNSec)
		details["MemoryPeak"] = godbus.MakeVariant(u.MemoryPeak)
		details["IOReadBytes"] = godbus.MakeVariant(u.IORead)
		details["IOWriteBytes"] = godbus.MakeVariant(u.IOWritten)
	}
	return details
}

// emit sends a signal. Those who miss one can ask.
func (s *server) emit(path godbus.ObjectPath, iface, member string, body ...any) {
	if err := s.conn.emit(path, iface, member, body...); err != nil {
		s.Log.Warn("Cannot emit a signal", "member", member, "error", err)
	}
}

func member(m *message) string { return header(m, godbus.FieldMember) }
func sender(m *message) string { return header(m, godbus.FieldSender) }

func header(m *message, field godbus.HeaderField) string {
	v, _ := m.Headers[field].Value().(string)
	return v
}
