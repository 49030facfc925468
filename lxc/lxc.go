// Package lxc finds LXC's containers, by asking liblxc.
//
// There is no daemon behind LXC: each container has a monitor, a process that answers questions on a socket
// of its own. Package [monitor] tells how it is found, whose it is, and what follows from that: "web" is the
// system's container, "web@alice" one of alice's.
//
// Of the system's containers liblxc tells the state and the leader, for which it gets a pidfd from the
// monitor, so that no process id is passed around at all. That the pidfd's process is the monitor's child is
// checked afterwards, because a user can take the place of a monitor that has just ended.
//
// About users' containers root does not ask liblxc, which would read their configuration, as root; nor about
// those of root in directories that somebody else can write to. There the kernel tells all that is needed.
//
// # liblxc
//
// It is C, it is linked into whoever imports this package, and a call into it takes as long as it takes: a
// monitor that is stopped, or being debugged, does not answer, ever. Calls are therefore made in goroutines
// of their own, one at a time for each container and eight at a time in all, and are left behind when they
// take too long. A thread that is stuck like that costs some memory, and is gone when the monitor goes on,
// or ends.
//
// It requires liblxc 4.0 or newer.
package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/lxc/monitor"
)

const (
	// callTimeout is how long liblxc may take to answer.
	callTimeout = 1500 * time.Millisecond
	// mostCalls is how many calls into liblxc there are at any time.
	mostCalls = 8
)

// Resolver asks liblxc. It may be used by several goroutines at once.
type Resolver struct {
	calls *calls
}

var _ machine.Resolver = (*Resolver)(nil)

// NewResolver returns a resolver. It asks nobody yet.
func NewResolver() *Resolver { return &Resolver{newCalls(mostCalls)} }

// Kind returns "lxc".
func (*Resolver) Kind() string { return monitor.Kind }

// Resolve finds a running container, "web" of the system or "web@alice" of a user. The caller closes it.
// Errors carry fail.NoSuchMachine, fail.NotRunning, fail.NotAContainer, or fail.AmbiguousMachine (in two
// lxcpaths). Reading /proc of other users' processes requires CAP_SYS_PTRACE.
func (r *Resolver) Resolve(ctx context.Context, name string) (*machine.Machine, error) {
	system, err := systemPath(ctx, r.calls)
	if err != nil {
		return nil, err
	}
	c, err := monitor.Find(ctx, system, name)
	if fail.Is(err, fail.NoSuchMachine) && isDefined(system, name) {
		return nil, monitor.Container{Path: system, Name: name}.NotRunning("is not running")
	}
	if err != nil {
		return nil, err
	}
	return r.machine(c, ctx)
}

// List returns the running containers of the system and of all users, sorted by name.
func (r *Resolver) List(ctx context.Context) ([]machine.Info, error) {
	list, err := monitor.All(ctx)
	if err != nil {
		return nil, err
	}
	return machine.Rows(ctx, list, r.machine)
}

// machine holds on to a container's leader.
func (r *Resolver) machine(c monitor.Container, ctx context.Context) (*machine.Machine, error) {
	if c.UID != 0 || !onlyRoots(filepath.Join(c.Path, c.Name)) {
		return c.Machine(ctx)
	}
	a, err := call(ctx, r.calls, c.Path+"/"+c.Name, func() answer { return ask(c) }, answer.close)
	if err != nil {
		return nil, fmt.Errorf("asking liblxc about the container %q: %w", c.Name, err)
	}
	if a.err != nil {
		return nil, a.err
	}
	if err := c.Verify(a.leader); err != nil {
		a.close()
		return nil, err
	}
	m := c.WithLeader(a.leader)
	m.Root = a.root
	return m, nil
}

// onlyRoots reports whether nobody but root can change where a directory is or what is in it. A container that
// has none, as its configuration is elsewhere, gives liblxc nothing to read.
func onlyRoots(dir string) bool {
	for {
		var st unix.Stat_t
		switch err := unix.Lstat(dir, &st); {
		case errors.Is(err, unix.ENOENT):
		case err != nil, st.Mode&unix.S_IFMT != unix.S_IFDIR, st.Uid != 0, st.Mode&0o022 != 0:
			return false
		}
		if dir == "/" {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

// isDefined reports whether the system has a container, running or not. liblxc's own functions would take
// a lock, in a file that they make for any name that somebody asks about.
func isDefined(lxcpath, name string) bool {
	info, err := os.Lstat(filepath.Join(lxcpath, name, "config"))
	return err == nil && info.Mode().IsRegular() && name != "." && name != ".."
}
