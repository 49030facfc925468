package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Service resolves "unit:NAME": the namespaces of a systemd service's main process are the machine. With
// PrivateTmp=, RootDirectory=, RootImage=, PrivateNetwork=, DynamicUser= and many more a service is a
// container in all but name, whose view of the system is not the one that its administrator has
// (systemd.exec(5), "Sandboxing"). It has no pid namespace of its own, as a rule.
//
// The zero value is ready to use. It connects to systemd when first asked, and again should the connection
// break, and may be used by several goroutines at once.
type Service struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

var _ machine.TypedOnly = (*Service)(nil)

// Kind returns "unit".
func (*Service) Kind() string { return "unit" }

// TypedOnly says that a bare name is no service: "nginx" would often be one by accident.
func (*Service) TypedOnly() {}

// Close ends the connection to systemd.
func (s *Service) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	return nil
}

// service is what is used of a unit (org.freedesktop.systemd1(5)).
type service struct {
	Id           string // its own name, where it was asked for with another
	LoadState    string // "loaded", "not-found", "masked"
	ActiveState  string // "active", "inactive", "activating"
	MainPID      uint32
	ControlGroup string // "/system.slice/nginx.service"

	RootDirectory string
}

// Resolve holds on to the main process of a running service, called "nginx.service" or "nginx". The caller
// closes it. Errors carry fail.NoSuchMachine, fail.NotRunning, fail.NotAContainer (a unit that is no service,
// or has no main process), or fail.NotSupported (no systemd).
func (s *Service) Resolve(ctx context.Context, name string) (*machine.Machine, error) {
	unit, err := serviceName(name)
	if err != nil {
		return nil, err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	p, err := serviceOf(ctx, conn, unit)
	if err != nil {
		return nil, err
	}
	if err := p.usable(); err != nil {
		return nil, err
	}
	leader, err := machine.OpenLeader(int(p.MainPID))
	if fail.Is(err, fail.NotRunning) {
		return nil, p.notRunning("has just ended")
	}
	if err != nil {
		return nil, fmt.Errorf("service %q: %w", p.Id, err)
	}
	if err := p.verify(ctx, conn, leader); err != nil {
		_ = leader.Close() // the error that matters is the other one
		return nil, err
	}
	return &machine.Machine{
		Kind: s.Kind(), Name: p.Id, Class: "service", Service: "systemd", Unit: p.Id, Root: p.RootDirectory, Leader: leader,
	}, nil
}

// List returns the services with a root directory of their own, sorted by name. Most others have mounts of
// their own, too, on any system of today: they can be named, but are not what a list of machines is for.
func (s *Service) List(ctx context.Context) ([]machine.Info, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	units, err := conn.ListUnitsByPatternsContext(ctx, []string{"active"}, []string{"*.service"})
	if err != nil {
		return nil, fmt.Errorf("asking systemd for its services: %w", err)
	}
	host, err := rootOf(1)
	if err != nil {
		return nil, err
	}
	var list []machine.Info
	for _, u := range units {
		if u.SubState != "running" {
			continue
		}
		pid, err := mainPID(ctx, conn, u.Name)
		if err != nil {
			return list, err
		}
		if pid == 0 {
			continue
		}
		root, err := rootOf(pid)
		if errors.Is(err, fs.ErrNotExist) || root == host {
			continue
		}
		if err != nil {
			return list, fmt.Errorf("service %q: %w", u.Name, err)
		}
		list = append(list, machine.Info{
			Kind: s.Kind(), Name: u.Name, Class: "service", Service: "systemd", Leader: pid,
		})
	}
	slices.SortFunc(list, func(a, b machine.Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// connect returns a connection to systemd that works, as far as can be known: over the system bus or, where
// there is none and the caller is root, over systemd's own socket.
func (s *Service) connect(ctx context.Context) (*dbus.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) { return bus.Connect(ctx) })
	if err != nil && os.Geteuid() == 0 {
		var second error
		conn, second = dbus.NewConnection(func() (*godbus.Conn, error) {
			return bus.ConnectPeer(ctx, "/run/systemd/private")
		})
		err = errors.Join(err, second)
		if second == nil {
			err = nil
		}
	}
	if err != nil {
		return nil, fail.New(fail.NotSupported, "", "cannot reach systemd: %w", err)
	}
	s.conn = conn
	return conn, nil
}

// serviceName completes a service's name, as systemctl does.
func serviceName(name string) (string, error) {
	switch suffix := name[strings.LastIndexByte(name, '.')+1:]; {
	case strings.HasSuffix(name, ".service"):
		return name, nil
	case slices.Contains(otherUnits, suffix) && strings.Contains(name, "."):
		return "", fail.New(fail.NotAContainer, "pid:N is for any process; systemctl status "+name+" lists them",
			"%q is not a service: it has no main process", name)
	}
	return name + ".service", nil
}

// otherUnits are the units that are no services (systemd.unit(5)).
var otherUnits = []string{
	"socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope",
}

// serviceOf asks systemd about a service. systemd loads the unit if it must, and knows any valid name. It is
// asked for one property after the other: all of them are hundreds, some of which take it time to find out. If the
// service changed its state meanwhile, they do not belong together, and it is asked again.
func serviceOf(ctx context.Context, conn *dbus.Conn, name string) (service, error) {
	for {
		var before, after uint64
		p, err := propertiesOf(ctx, conn, name, &before, &after)
		if err != nil || before == after {
			return p, err
		}
	}
}

// propertiesOf asks for the properties of a service, and for the time of its last change of state before and after the others.
func propertiesOf(ctx context.Context, conn *dbus.Conn, name string, before, after *uint64) (service, error) {
	var p service
	for _, of := range []struct {
		kind, property string
		to             any
	}{
		{"Unit", "StateChangeTimestampMonotonic", before},
		{"Unit", "Id", &p.Id},
		{"Unit", "LoadState", &p.LoadState},
		{"Unit", "ActiveState", &p.ActiveState},
		{"Service", "MainPID", &p.MainPID},
		{"Service", "ControlGroup", &p.ControlGroup},
		{"Service", "RootDirectory", &p.RootDirectory},
		{"Unit", "StateChangeTimestampMonotonic", after},
	} {
		value, err := conn.GetUnitTypePropertyContext(ctx, name, of.kind, of.property)
		switch bus.ErrorName(err) {
		case "org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.DBus.Error.UnknownObject",
			"org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.LoadFailed":
			return p, noSuchService(name)
		}
		if err == nil {
			err = value.Value.Store(of.to)
		}
		if err != nil {
			return p, fmt.Errorf("asking systemd for %s of %q: %w", of.property, name, err)
		}
	}
	return p, nil
}

// mainPID asks systemd for a service's main process; 0 if it has none.
func mainPID(ctx context.Context, conn *dbus.Conn, name string) (int, error) {
	value, err := conn.GetUnitTypePropertyContext(ctx, name, "Service", "MainPID")
	var pid uint32
	if err == nil {
		err = value.Value.Store(&pid)
	}
	if err != nil {
		return 0, fmt.Errorf("asking systemd for the main process of %q: %w", name, err)
	}
	return int(pid), nil
}

func noSuchService(name string) error {
	return fail.New(fail.NoSuchMachine, "see systemctl list-units --type=service", "systemd knows no service %q", name)
}

// usable refuses what cannot be attached to, going by what systemd says.
func (p service) usable() error {
	switch {
	case p.LoadState == "not-found" || p.Id == "":
		return noSuchService(p.Id)
	case p.ActiveState == "inactive", p.ActiveState == "failed":
		return p.notRunning("is " + p.ActiveState)
	case p.MainPID == 0 && p.ActiveState == "active":
		return fail.New(fail.NotAContainer, "pid:N is for any process; systemctl status "+p.Id+" lists them",
			"service %q has no main process", p.Id)
	case p.MainPID == 0 || p.ControlGroup == "":
		return p.notRunning("is " + p.ActiveState)
	}
	return nil
}

func (p service) notRunning(what string) error {
	return fail.New(fail.NotRunning, "start it: systemctl start "+p.Id, "service %q %s", p.Id, what)
}

// verify makes sure that leader, a pidfd just opened by number, holds the service's main process: systemd
// still gives this number, the process is in the service's control group, and is alive after both.
func (p service) verify(ctx context.Context, conn *dbus.Conn, leader *machine.Leader) error {
	now, err := mainPID(ctx, conn, p.Id)
	if err != nil {
		return err
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", leader.PID))
	if now != leader.PID || !leader.Alive() || errors.Is(err, fs.ErrNotExist) {
		return p.notRunning("has just ended or been restarted")
	}
	if err != nil {
		return fmt.Errorf("service %q: %w", p.Id, err)
	}
	if !inCgroup(string(cgroups), p.ControlGroup) {
		return fail.New(fail.NotAContainer, "", "the main process of service %q, %d, has left its control group",
			p.Id, leader.PID)
	}
	return nil
}

// inCgroup reports whether /proc/PID/cgroup puts its process into a control group, or one below it. The
// unified hierarchy has the line "0::/system.slice/nginx.service"; where systemd uses another, its name is
// in front: "1:name=systemd:/…".
func inCgroup(cgroups, group string) bool {
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		if fields[2] == group || strings.HasPrefix(fields[2], group+"/") {
			return true
		}
	}
	return false
}

// directory tells directories apart.
type directory struct{ dev, ino uint64 }

// rootOf returns a process's root directory.
func rootOf(pid int) (directory, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/root", pid), &st); err != nil {
		return directory{}, fmt.Errorf("root directory of process %d: %w", pid, err)
	}
	return directory{st.Dev, st.Ino}, nil
}
