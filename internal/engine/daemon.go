package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Daemon resolves the containers of an engine that has a daemon, which is asked over its socket. It may be used
// by several goroutines at once.
type Daemon struct {
	kind, title string
	program     string   // the daemon's name as a process
	sockets     []string // where the system's daemon listens: at one of these
	userSocket  string   // where a user's does, with %d for the user; empty if users have none
	start       string   // the command that starts the daemon
	find        func(question) (found, error)
	list        func(question) ([]found, error)
	scopes      *Scopes // find a container by id where the daemon does not answer; may be nil
}

var _ machine.Resolver = (*Daemon)(nil)

// question is what a daemon is asked: about the container that a name means, or about all.
type question struct {
	context.Context
	socket
	name string
}

// found is a container that a daemon told of.
type found struct {
	name  string
	pid   int    // of its leader; 0 if it does not run
	state string // the engine's word: "running", "exited"
	hint  string // how it is started
}

// How long a daemon has to answer, at most.
const (
	answerTimeout = 5 * time.Second
	listTimeout   = 1500 * time.Millisecond // a list is of all that answer
)

// shorter returns a context with less time than ctx has, so that there is some left to look elsewhere when a daemon does not
// answer.
func shorter(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if end, bounded := ctx.Deadline(); bounded {
		limit = min(limit, time.Until(end)*3/4)
	}
	return context.WithTimeout(ctx, limit)
}

// Kind returns the engine's name, "docker".
func (d *Daemon) Kind() string { return d.kind }

// Resolve finds a running container, "web" of the system's daemon or "web@alice" of a user's, by name or id as
// the engine takes them. The caller closes it. Errors carry fail.NoSuchMachine (also if the daemon does not
// run), fail.NotRunning, fail.AmbiguousMachine, or fail.NotAContainer.
func (d *Daemon) Resolve(ctx context.Context, name string) (*machine.Machine, error) {
	m, err := d.ask(ctx, name)
	if err == nil || d.scopes == nil || ctx.Err() != nil {
		return m, err
	}
	if code := fail.From(err).Code; code == fail.Internal || code == fail.NoSuchMachine || code == fail.Unresponsive {
		if m, second := d.scopes.Resolve(ctx, name); second == nil {
			return m, nil
		}
	}
	return nil, err
}

// ask resolves a name with the daemon's help.
func (d *Daemon) ask(ctx context.Context, name string) (*machine.Machine, error) {
	ctx, cancel := shorter(ctx, answerTimeout)
	defer cancel()
	owners, err := d.owners(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range owners {
		bare, owns := o.owns(name)
		if d.userSocket == "" {
			bare, owns = name, true
		}
		if !owns {
			continue
		}
		c, err := about(ctx, d, o, bare, d.find)
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fail.New(fail.Unresponsive, "see whether "+d.program+" works", "%s does not answer: %w", d.title, err)
		}
		if err != nil {
			return nil, err
		}
		return d.hold(ctx, o, c)
	}
	return nil, fail.New(fail.NoSuchMachine, d.title+" does not run; start it: "+d.start,
		"no %s runs that could have the container %q", d.title, name)
}

// owners returns whose daemons run. It starts none, which connecting to a socket of systemd's would do.
func (d *Daemon) owners(ctx context.Context) ([]owner, error) {
	pids, err := running(ctx, d.program)
	if err != nil {
		return nil, err
	}
	var owners []owner
	for _, pid := range pids {
		s, err := machine.StatusOf(pid)
		if err != nil || slices.ContainsFunc(owners, func(o owner) bool { return o.uid == s.UID }) {
			continue
		}
		if s.UID == 0 || d.userSocket != "" {
			owners = append(owners, ownerOf(s.UID))
		}
	}
	return owners, nil
}

// about asks an owner's daemon about a container, or all.
func about[T any](ctx context.Context, d *Daemon, o owner, name string, ask func(question) (T, error)) (T, error) {
	paths := d.sockets
	if o.uid != 0 {
		paths = []string{fmt.Sprintf(d.userSocket, o.uid)}
	}
	var answer T
	var err error
	for _, path := range paths {
		answer, err = ask(question{ctx, socket{path, o.uid}, name})
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
			break
		}
	}
	return answer, err
}

// hold holds on to the leader of a container. The process id that the daemon told is verified: when the pidfd is
// open the daemon tells it again, and the process lives after that.
func (d *Daemon) hold(ctx context.Context, o owner, c found) (*machine.Machine, error) {
	m, err := d.open(o, c)
	if err != nil {
		return nil, err
	}
	again, err := about(ctx, d, o, c.name, d.find)
	if fail.Is(err, fail.NoSuchMachine) || err == nil && (again.pid != c.pid || !m.Leader.Alive()) {
		err = d.gone(o, c)
	}
	if err != nil {
		_ = m.Close() // the error that matters is the other one
		return nil, err
	}
	return m, nil
}

// open holds on to the process that a daemon told of, if it is in a container that the owner may give away.
func (d *Daemon) open(o owner, c found) (*machine.Machine, error) {
	if c.pid <= 0 {
		return nil, fail.New(fail.NotRunning, c.hint, "%s container %q is %s", d.title, o.ref(c.name), c.state)
	}
	leader, err := machine.OpenLeader(c.pid)
	if fail.Is(err, fail.NotRunning) {
		return nil, d.gone(o, c)
	}
	if err != nil {
		return nil, err
	}
	if err := o.verify(leader, func() error { return d.gone(o, c) }); err != nil {
		_ = leader.Close() // the error that matters is the other one
		return nil, err
	}
	return &machine.Machine{
		Kind: d.kind, Name: o.ref(c.name), Class: "container", Service: d.kind, Leader: leader,
	}, nil
}

func (d *Daemon) gone(o owner, c found) error {
	return fail.New(fail.NotRunning, c.hint, "%s container %q has just ended", d.title, o.ref(c.name))
}

// List returns the running containers of the system's daemon and of users' daemons, sorted by name. All are asked at
// once, so that a user whose daemon hangs hides nobody else's containers. What a daemon says of a leader is verified.
func (d *Daemon) List(ctx context.Context) ([]machine.Info, error) {
	owners, err := d.owners(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := shorter(ctx, listTimeout)
	defer cancel()
	rows, failed := make([][]machine.Info, len(owners)), make([]error, len(owners))
	var all sync.WaitGroup
	for i, o := range owners {
		all.Add(1)
		go func() {
			defer all.Done()
			list, err := about(ctx, d, o, "", d.list)
			if err != nil {
				failed[i] = fmt.Errorf("containers of user %d: %w", o.uid, err)
			}
			rows[i], err = machine.Rows(context.WithoutCancel(ctx), list, func(c found, _ context.Context) (*machine.Machine, error) {
				return d.open(o, c)
			})
			failed[i] = errors.Join(failed[i], err)
		}()
	}
	all.Wait()
	list := slices.Concat(rows...)
	slices.SortFunc(list, func(a, b machine.Info) int { return strings.Compare(a.Name, b.Name) })
	return list, errors.Join(failed...)
}
