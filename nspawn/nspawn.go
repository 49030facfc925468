// Package nspawn finds the machines that systemd-machined knows: those of systemd-nspawn, and those
// that other container managers register.
//
// machined names a machine's first process, its leader, by a number. By the time the number is used
// the process may be gone and the number somebody else's, so it is turned into a pidfd at once, and
// only then is it asked whether what the pidfd holds is (still) the leader. From there on a machine is
// its pidfd; see [machine.Leader].
//
// machined is not to be believed in everything. Users with an active session may register machines
// without being asked for a password (systemd issue 39312), with any process of theirs as the leader.
// Such a machine must not become a way to have root enter something that is no container: only the
// class "container" is accepted, and a leader in the host's own mount namespace is refused.
package nspawn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// org.freedesktop.machine1(5).
const (
	service      = "org.freedesktop.machine1"
	managerPath  = "/org/freedesktop/machine1"
	manager      = "org.freedesktop.machine1.Manager"
	machineIface = "org.freedesktop.machine1.Machine"
)

// Resolver asks machined. The zero value is ready to use; it connects to the bus when first asked, and
// again should the bus have gone away. It may be used by several goroutines at once.
type Resolver struct {
	mu   sync.Mutex
	conn *godbus.Conn
}

var _ machine.Resolver = (*Resolver)(nil)

// Kind returns "nspawn".
func (r *Resolver) Kind() string { return "nspawn" }

// Close ends the connection to the bus.
func (r *Resolver) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	err := r.conn.Close()
	r.conn = nil
	return err
}

// Resolve finds the running container that machined knows by this name. The caller closes it. Errors
// carry fail.NoSuchMachine, fail.NotRunning (an image only, stopping, or gone meanwhile),
// fail.NotAContainer (a virtual machine, the host, or something that claims to be a container) or
// fail.NotSupported (no bus, no machined).
func (r *Resolver) Resolve(ctx context.Context, name string) (*machine.Machine, error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	var path godbus.ObjectPath
	err = call(ctx, conn, managerPath, manager+".GetMachine", name).Store(&path)
	if bus.ErrorName(err) == service+".NoSuchMachine" {
		return nil, notListed(ctx, conn, name)
	}
	if err != nil {
		return nil, unavailable(fmt.Errorf("asking machined for %q: %w", name, err))
	}
	p, err := propertiesOf(ctx, conn, path)
	if err != nil {
		return nil, goneOr(name, err)
	}
	if err := p.usable(name); err != nil {
		return nil, err
	}
	leader, err := machine.OpenLeader(int(p.Leader))
	if fail.Is(err, fail.NotRunning) {
		return nil, gone(name)
	}
	if err != nil {
		return nil, fmt.Errorf("machine %q: %w", name, err)
	}
	if err := verify(ctx, conn, path, p, leader); err != nil {
		_ = leader.Close() // the error that matters is the other one
		return nil, err
	}
	return &machine.Machine{
		Kind:    r.Kind(),
		Name:    p.Name,
		Class:   p.Class,
		Service: p.Service,
		Unit:    p.Unit,
		Root:    p.RootDirectory,
		Leader:  leader,
	}, nil
}

// List returns the running containers that machined knows, sorted by name.
func (r *Resolver) List(ctx context.Context) ([]machine.Info, error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		Name, Class, Service string
		Path                 godbus.ObjectPath
	}
	if err := call(ctx, conn, managerPath, manager+".ListMachines").Store(&rows); err != nil {
		return nil, unavailable(fmt.Errorf("asking machined for its machines: %w", err))
	}
	var list []machine.Info
	for _, row := range rows {
		if row.Class != "container" {
			continue
		}
		p, err := propertiesOf(ctx, conn, row.Path)
		switch {
		case isGone(err):
			continue // it ended since it was listed
		case err != nil:
			return nil, unavailable(fmt.Errorf("asking machined about %q: %w", row.Name, err))
		case p.State == "closing":
			continue
		}
		list = append(list, machine.Info{
			Kind: r.Kind(), Name: row.Name, Class: row.Class, Service: row.Service, Leader: int(p.Leader),
		})
	}
	slices.SortFunc(list, func(a, b machine.Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// connect returns a connection to the bus that works, as far as can be known.
func (r *Resolver) connect(ctx context.Context) (*godbus.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil && r.conn.Connected() {
		return r.conn, nil
	}
	conn, err := bus.Connect(ctx)
	if err != nil {
		return nil, err
	}
	r.conn = conn
	return conn, nil
}

// properties is what is used of org.freedesktop.machine1.Machine.
type properties struct {
	Name          string
	Class         string // "container", "vm", "host"
	Service       string
	Unit          string
	Leader        uint32
	LeaderPIDFDId uint64 // inode number of the leader's pidfd; 0 before v258 and on kernels before 6.9
	RootDirectory string
	State         string // "opening", "running", "closing"
}

func propertiesOf(ctx context.Context, conn *godbus.Conn, path godbus.ObjectPath) (properties, error) {
	var all map[string]godbus.Variant
	err := call(ctx, conn, path, "org.freedesktop.DBus.Properties.GetAll", machineIface).Store(&all)
	if err != nil {
		return properties{}, err
	}
	var p properties
	for name, to := range map[string]any{
		"Name": &p.Name, "Class": &p.Class, "Service": &p.Service, "Unit": &p.Unit, "Leader": &p.Leader,
		"LeaderPIDFDId": &p.LeaderPIDFDId, "RootDirectory": &p.RootDirectory, "State": &p.State,
	} {
		v, ok := all[name]
		if !ok {
			continue
		}
		if err := v.Store(to); err != nil {
			return properties{}, fmt.Errorf("property %s of %s: %w", name, path, err)
		}
	}
	return p, nil
}

// usable refuses what cannot be attached to, going by what machined says.
func (p properties) usable(name string) error {
	switch {
	case p.Class == "host":
		return fail.New(fail.NotAContainer, "", "%q is the host itself", name)
	case p.Class != "container":
		return fail.New(fail.NotAContainer, "only containers share the host's kernel and can be attached to",
			"%q is of class %q, not a container", name, p.Class)
	case p.State == "closing":
		return fail.New(fail.NotRunning, startHint(name), "machine %q is stopping", name)
	case p.Leader == 0:
		return gone(name)
	}
	return nil
}

// notListed says why machined has no machine of this name: it may have an image that is not started.
func notListed(ctx context.Context, conn *godbus.Conn, name string) error {
	var path godbus.ObjectPath
	err := call(ctx, conn, managerPath, manager+".GetImage", name).Store(&path)
	if err == nil {
		return fail.New(fail.NotRunning, startHint(name), "machine %q is not running", name)
	}
	// Whatever else this was (NoSuchImage, InvalidArgs for a name that no image can have), there is
	// no such machine.
	return fail.New(fail.NoSuchMachine, "see machinectl list", "machined knows no machine %q", name)
}

func startHint(name string) string { return "start it: machinectl start " + name }

// gone is the error for a machine that ended while it was looked at.
func gone(name string) error {
	return fail.New(fail.NotRunning, startHint(name), "machine %q is gone", name)
}

func goneOr(name string, err error) error {
	if isGone(err) {
		return gone(name)
	}
	return unavailable(fmt.Errorf("asking machined about %q: %w", name, err))
}

// isGone reports whether machined's object does not exist any more.
func isGone(err error) bool {
	switch bus.ErrorName(err) {
	case "org.freedesktop.DBus.Error.UnknownObject", service + ".NoSuchMachine":
		return true
	}
	return false
}

// unavailable explains a call that failed although nothing was wrong with it: there is no machined to
// answer, or it was restarted in the middle of it.
func unavailable(err error) error {
	switch {
	case bus.NotInstalled(err):
		return fail.New(fail.NotSupported, "install systemd-machined (package systemd-container)",
			"no machined on this system: %w", err)
	case bus.NotStarted(err):
		return fail.New(fail.NotSupported, "see systemctl status systemd-machined",
			"machined cannot be started: %w", err)
	case bus.ErrorName(err) != "", errors.Is(err, context.DeadlineExceeded):
		return fail.New(fail.NotSupported, "see systemctl status systemd-machined",
			"machined does not answer: %w", err)
	}
	return err
}

func call(ctx context.Context, conn *godbus.Conn, path godbus.ObjectPath, method string, args ...any) *godbus.Call {
	return conn.Object(service, path).CallWithContext(ctx, method, 0, args...)
}
