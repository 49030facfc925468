package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
)

// machineRow is a row of ListMachines.
type machineRow struct {
	Name, Kind, Class, Service string
	Leader                     uint32
}

func (s *server) listMachines(ctx context.Context, _ caller, _ *message) ([]any, error) {
	list, err := s.Machines.List(ctx)
	if err != nil && len(list) == 0 {
		return nil, err
	}
	if err != nil {
		s.Log.Warn("Some machines cannot be listed", "error", err)
	}
	rows := []machineRow{}
	for _, m := range list {
		rows = append(rows, machineRow{clean(m.Name), m.Kind, m.Class, clean(m.Service), uint32(m.Leader)})
	}
	return []any{rows}, nil
}

// resolveMachine tells what there is to know about one machine.
func (s *server) resolveMachine(ctx context.Context, _ caller, m *message) ([]any, error) {
	var name string
	if err := godbus.Store(m.Body, &name); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	found, _, err := s.Machines.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	standing, err := s.Sessions.Standing(found)
	if err != nil {
		return nil, err
	}
	return []any{clean(found.Ref()), map[string]godbus.Variant{
		"Class":      godbus.MakeVariant(clean(found.Class)),
		"Service":    godbus.MakeVariant(clean(found.Service)),
		"Unit":       godbus.MakeVariant(clean(found.Unit)),
		"Root":       godbus.MakeVariant(clean(found.Root)),
		"Leader":     godbus.MakeVariant(uint32(found.Leader.PID)),
		"Privileged": godbus.MakeVariant(standing.Privileged),
		"Owners":     godbus.MakeVariant(append([]uint32{}, standing.Owners...)),
	}}, nil
}

// managedObjects returns all sessions with their properties.
func (s *server) managedObjects(ctx context.Context, _ caller, _ *message) ([]any, error) {
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	all := map[godbus.ObjectPath]map[string]map[string]godbus.Variant{}
	for _, e := range s.sessions.list() {
		all[e.path] = map[string]map[string]godbus.Variant{dbus.SessionInterface: s.propertiesOf(e)}
	}
	return []any{all}, nil
}

// attach resolves the machine, starts the session, and hands the caller's ends of it over.
func (s *server) attach(ctx context.Context, who caller, m *message) ([]any, error) {
	var name string
	var argv []string
	var options map[string]godbus.Variant
	if err := godbus.Store(m.Body, &name, &argv, &options); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	spec, err := parseSpec(argv, options, m)
	if err != nil {
		return nil, err
	}
	status, err := statusPipe(m)
	if err != nil {
		return nil, err
	}
	spec.Status = status[1]

	if spec.Caller, err = who.forSession(); err != nil {
		return nil, err
	}
	done, err := s.reserve(who)
	if err != nil {
		return nil, err
	}
	defer done()
	s.Sessions.Anticipate()
	target, failed, err := s.find(ctx, who, name, &spec)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if spec.Image, err = s.findImage(ctx, who, &spec); err != nil {
		return nil, err
	}
	defer spec.Image.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout/2+spec.Image.OpenLimit())
	defer cancel()
	spec.NoWatch = s.sessions.count() >= maxWatching
	started, err := s.Sessions.Start(ctx, target, spec.Spec)
	if err != nil {
		return nil, err
	}
	results := map[string]godbus.Variant{}
	if len(failed) > 0 {
		results["notes"] = godbus.MakeVariant(notes(failed))
	}
	if terminal := started.Terminal; terminal != nil {
		// Ours is closed with the answer: the caller's shall be the only one, so that the session
		// notices when it goes.
		started.Terminal = nil
		m.own(terminal)
		results["terminal"] = godbus.MakeVariant(godbus.UnixFD(terminal.Fd()))
	}
	e, err := s.sessions.add(started)
	if err != nil {
		err = errors.Join(err, s.Sessions.Terminate(ctx, started))
		_ = started.Close()
		return nil, err
	}
	return []any{started.ID, e.path, godbus.UnixFD(status[0].Fd()), results}, nil
}

// notes says which resolvers could not tell whether they know a machine that another has found.
func notes(failed []*machine.Failure) []string {
	var list []string
	for _, f := range failed {
		list = append(list, clean(f.Error()))
	}
	return list
}

// statusPipe makes the pipe on which the session tells its end: read end, write end. Both live as long
// as the message; who they are handed to has copies.
//
// It is not made by os.Pipe, which makes its pipes non-blocking: that is a property of the pipe, not
// of the descriptor, and a program that gets one does not expect it.
func statusPipe(m *message) ([2]*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return [2]*os.File{}, fmt.Errorf("pipe: %w", err)
	}
	files := [2]*os.File{os.NewFile(uintptr(fds[0]), "status"), os.NewFile(uintptr(fds[1]), "status")}
	m.own(files[0])
	m.own(files[1])
	return files, nil
}

// sessionRow is a row of ListSessions.
type sessionRow struct {
	ID, Machine, User string
	Command           []string
	Scope             string
	Path              godbus.ObjectPath
}

func (s *server) listSessions(ctx context.Context, _ caller, _ *message) ([]any, error) {
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	rows := []sessionRow{}
	for _, e := range s.sessions.list() {
		rows = append(rows, sessionRow{e.ID, clean(e.Machine), clean(e.User), cleanAll(e.Command), e.Scope, e.path})
	}
	return []any{rows}, nil
}

func (s *server) getSession(ctx context.Context, who caller, m *message) ([]any, error) {
	var id string
	if err := godbus.Store(m.Body, &id); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	e, err := s.session(ctx, who, id, actionInspect)
	if err != nil {
		return nil, err
	}
	return []any{e.path}, nil
}

func (s *server) terminateSession(ctx context.Context, who caller, m *message) ([]any, error) {
	var id string
	if err := godbus.Store(m.Body, &id); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	e, err := s.session(ctx, who, id, actionManage)
	if err != nil {
		return nil, err
	}
	ctx, cancel := renewed(ctx)
	defer cancel()
	return nil, s.terminate(ctx, who, e)
}

func (s *server) killSession(ctx context.Context, who caller, m *message) ([]any, error) {
	var id string
	var signal int32
	if err := godbus.Store(m.Body, &id, &signal); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	e, err := s.session(ctx, who, id, actionManage)
	if err != nil {
		return nil, err
	}
	return nil, s.kill(who, e, signal)
}

// session finds a session by its id, for a caller who may see it: see [server.visible].
func (s *server) session(ctx context.Context, who caller, id string, what action) (*entry, error) {
	e := s.sessions.get(id)
	if e == nil {
		// It may have been started without the service.
		if err := s.refresh(ctx); err != nil {
			return nil, err
		}
		e = s.sessions.get(id)
	}
	if err := s.visible(ctx, who, e, what); err != nil {
		return nil, err
	}
	if e == nil {
		return nil, noSuchSession(id)
	}
	return e, nil
}

func noSuchSession(id string) error {
	return fail.New(fail.NoSuchSession, "cntrctl sessions shows the ids", "no session has the id %q", id)
}

func (s *server) terminate(ctx context.Context, who caller, e *entry) error {
	if !e.hold() {
		return noSuchSession(e.ID) // it has just ended
	}
	defer e.release()
	if !e.closing.Swap(true) {
		s.emit(e.path, propertiesInterface, "PropertiesChanged", dbus.SessionInterface,
			map[string]godbus.Variant{"State": godbus.MakeVariant(e.state())}, []string{})
	}
	s.Log.Info(fmt.Sprintf("Session %s in %s is terminated by uid %d", e.ID, e.Machine, who.uid),
		"session", e.ID, "machine", e.Machine, "caller", who.uid)
	return s.Sessions.Terminate(ctx, e.Session)
}

// kill sends a signal to the commands of a session, not to what serves it.
func (s *server) kill(who caller, e *entry, signal int32) error {
	const most = 64 // SIGRTMAX
	if signal < 1 || signal > most {
		return invalid("signal", "%d is not between 1 and %d", signal, most)
	}
	if !e.hold() {
		return noSuchSession(e.ID)
	}
	defer e.release()
	s.Log.Info(fmt.Sprintf("Session %s in %s is sent signal %d by uid %d", e.ID, e.Machine, signal, who.uid),
		"session", e.ID, "machine", e.Machine, "caller", who.uid)
	return s.Sessions.Kill(e.Session, unix.Signal(signal))
}

// refresh takes up sessions that the server did not start itself: those from before it was started,
// and those of cntr-attach --direct.
func (s *server) refresh(ctx context.Context) error {
	running, err := s.Sessions.Running(ctx, s.sessions.known)
	if err != nil {
		return err
	}
	var failed error
	for _, one := range running {
		if _, err := s.sessions.add(one); err != nil {
			_ = one.Close()
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		s.Log.Warn("Some sessions cannot be taken up", "error", failed)
	}
	return nil
}

var _ Sessions = (*session.Launcher)(nil)

// clean makes any string one that D-Bus can carry: what is run in a machine, and the names there, may
// hold any bytes.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func cleanAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = clean(s)
	}
	return out
}
