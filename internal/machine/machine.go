// Package machine says what a machine is, and how a name becomes one.
//
// A machine is a running container, a service with namespaces of its own, or a bare process that
// somebody put into some: whatever has a leader. Each kind of container manager has a [Resolver] in a
// package of its own; a [Registry] asks them. The package knows none of them.
package machine

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Machine is a machine that was found running.
type Machine struct {
	Kind    string  // the resolver that found it: "nspawn", "pid"
	Name    string  // its name there, never empty
	Class   string  // "container", "service" or "process"
	Service string  // who registered it: "systemd-nspawn", "libvirt-lxc"; may be empty
	Unit    string  // its systemd unit, "systemd-nspawn@web.service"; may be empty
	Root    string  // its root directory on the host, for display only; may be empty
	Leader  *Leader // its first process; owned by the Machine
}

// Ref returns the machine's typed name, "nspawn:web".
func (m *Machine) Ref() string { return m.Kind + ":" + m.Name }

// Close lets go of the leader.
func (m *Machine) Close() error { return m.Leader.Close() }

// Info is a row in a list of machines: what is known without holding on to it.
type Info struct {
	Kind    string
	Name    string
	Class   string
	Service string
	Leader  int // process id in the caller's pid namespace
}

// Rows makes a list, sorted by name, of what a resolver's own kind of container are as machines. Those that have
// ended since, or are no containers, are left out; with an error it is those that are known.
func Rows[T any](ctx context.Context, list []T, resolve func(T, context.Context) (*Machine, error)) ([]Info, error) {
	var rows []Info
	var failed []error
	for _, c := range list {
		m, err := resolve(c, ctx)
		switch {
		case ctx.Err() != nil:
			return rows, ctx.Err()
		case fail.Is(err, fail.NotRunning), fail.Is(err, fail.NotAContainer):
			continue
		case err != nil:
			failed = append(failed, err)
			continue
		}
		rows = append(rows, Info{Kind: m.Kind, Name: m.Name, Class: m.Class, Service: m.Service, Leader: m.Leader.PID})
		_ = m.Close()
	}
	slices.SortFunc(rows, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return rows, errors.Join(failed...)
}

// Resolver knows the machines of one kind. It may be used by several goroutines at once.
type Resolver interface {
	// Kind is the prefix in typed names: "nspawn" in "nspawn:web".
	Kind() string
	// Resolve finds a running machine. The caller closes it. Errors carry fail.NoSuchMachine,
	// fail.NotRunning, fail.NotAContainer or fail.AmbiguousMachine where they apply; any other says that
	// the resolver could not tell.
	Resolve(ctx context.Context, name string) (*Machine, error)
	// List returns the running machines, sorted by name. With an error, it is those that are known.
	List(ctx context.Context) ([]Info, error)
}

// TypedOnly is a resolver whose machines a bare name never means: "123" is no process and "nginx" no
// service, unless the user says so with "pid:123" and "unit:nginx".
type TypedOnly interface {
	Resolver
	TypedOnly()
}

// Ref is what a user typed to name a machine.
type Ref struct {
	Kind string // empty for a bare name
	Name string
}

// ParseRef splits "kind:name". A name may hold any byte but NUL and '/', and control characters are
// refused so that a name can be printed.
func ParseRef(s string) (Ref, error) {
	kind, name, typed := strings.Cut(s, ":")
	if !typed {
		kind, name = "", s
	}
	if name == "" || (typed && kind == "") {
		return Ref{}, fail.New(fail.InvalidArgument, "a machine is NAME or KIND:NAME, as in web or nspawn:web",
			"invalid machine name %q", s)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '/' {
			return Ref{}, fail.New(fail.InvalidArgument, "a machine name has no slash and no control character",
				"invalid machine name %q", s)
		}
	}
	return Ref{Kind: kind, Name: name}, nil
}

// String returns what [ParseRef] would parse.
func (r Ref) String() string {
	if r.Kind == "" {
		return r.Name
	}
	return r.Kind + ":" + r.Name
}

// shortID is as much of a container's id as engines show.
const shortID = 12

// means reports whether a reference names a machine that was found by it, and does not only start its id.
func (r Ref) means(m *Machine) bool {
	return r.Kind != "" || r.Name == m.Name || len(r.Name) >= shortID
}
