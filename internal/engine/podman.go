package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Podman resolves Podman's containers, root's as "web", alice's as "web@alice", by name or by the start of an id.
//
// There is no daemon behind Podman, and its API, where somebody has enabled it, is a program that is started to
// answer. But each container has a monitor, conmon, whose arguments tell the container's name and id, and whose
// child is the container's first process:
//
//	/usr/bin/conmon … -c 8a5b… -u 8a5b… -n web …     uid 0, or alice's
//	   └ process 1 of the container                  the leader
//
// Who runs a conmon, whose child a process is, and who made a user namespace are for the kernel to tell; of files
// that a user can write none is read. A user's conmon can give away processes in that user's own user namespaces,
// no others. Root's has to be a program of root's that is not set-user-id, in the host's own namespaces.
//
// A container has the name under which it was started, should it have been renamed while it ran.
type Podman struct{}

var _ machine.Resolver = Podman{}

// Kind returns "podman".
func (Podman) Kind() string { return "podman" }

// conmon is a monitor and the container that it claims to have.
type conmon struct {
	pid      int
	parent   int
	owner    owner
	id, name string
}

func (c conmon) ref() string { return c.owner.ref(c.name) }

// mostOfUser is how many monitors of one user are looked into, as anybody can start any number of processes.
const mostOfUser = 512

// Resolve finds a running container. The caller closes it. Errors carry fail.NoSuchMachine, fail.NotRunning,
// fail.AmbiguousMachine or fail.NotAContainer. It takes CAP_SYS_PTRACE.
func (p Podman) Resolve(ctx context.Context, name string) (*machine.Machine, error) {
	list, err := conmons(ctx)
	if err != nil {
		return nil, err
	}
	var its, byID, others []conmon
	for _, c := range list {
		bare, owns := c.owner.owns(name)
		switch {
		case owns && c.name == bare:
			its = append(its, c)
		case owns && bare != "" && strings.HasPrefix(c.id, bare):
			byID = append(byID, c)
		case c.name == name:
			others = append(others, c)
		}
	}
	if len(its) == 0 {
		its = byID
	}
	switch {
	case len(its) == 1:
		return its[0].machine(ctx)
	case len(its) > 1:
		var refs []string
		for _, c := range its {
			refs = append(refs, "podman:"+c.owner.ref(c.id[:12]))
		}
		return nil, fail.New(fail.AmbiguousMachine, "say which: "+strings.Join(refs, " or "),
			"more than one Podman container is called %q", name)
	}
	hint := "see podman ps"
	if len(others) > 0 {
		var refs []string
		for _, c := range others {
			refs = append(refs, "podman:"+c.ref())
		}
		hint = "did you mean " + strings.Join(refs, " or ") + "?"
	}
	return nil, fail.New(fail.NoSuchMachine, hint, "no Podman container %q runs", name)
}

// List returns the running containers of all users, sorted by name.
func (p Podman) List(ctx context.Context) ([]machine.Info, error) {
	list, err := conmons(ctx)
	if err != nil {
		return nil, err
	}
	return machine.Rows(ctx, list, conmon.machine)
}

// conmons returns the monitors of Podman's containers.
func conmons(ctx context.Context) ([]conmon, error) {
	pids, err := running(ctx, "conmon")
	if err != nil {
		return nil, err
	}
	var list []conmon
	count := map[uint32]int{}
	for _, pid := range pids {
		s, err := machine.StatusOf(pid)
		if err != nil || !isConmon(pid, s.UID) {
			continue
		}
		if count[s.UID]++; s.UID != 0 && count[s.UID] > mostOfUser {
			continue
		}
		args, err := argsOf(pid)
		if err != nil {
			continue // it has ended
		}
		if c, ok := parseConmon(args); ok {
			c.pid, c.parent, c.owner = pid, s.Parent, ownerOf(s.UID)
			list = append(list, c)
		}
	}
	return withoutForks(list), nil
}

// withoutForks leaves out a conmon's children that have not executed the container's runtime yet: until then they look like
// their parent.
func withoutForks(list []conmon) []conmon {
	var own []conmon
	for _, c := range list {
		if !slices.ContainsFunc(list, func(p conmon) bool { return p.pid == c.parent && p.owner == c.owner && p.id == c.id }) {
			own = append(own, c)
		}
	}
	return own
}

// isConmon reports whether a process that is called conmon is one, of this user's. A user can have root run a
// set-user-id program by any name, and a container's root any program in the container.
func isConmon(pid int, uid uint32) bool {
	if host, err := machine.SharesWithHost(pid, "pid"); err != nil || !host {
		return false
	}
	if uid != 0 {
		return true
	}
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	path, err := os.Readlink(exe)
	var st unix.Stat_t
	if err != nil || unix.Stat(exe, &st) != nil {
		return false
	}
	host, err := machine.SharesWithHost(pid, "user")
	return err == nil && host && filepath.Base(strings.TrimSuffix(path, " (deleted)")) == "conmon" &&
		st.Uid == 0 && st.Mode&(unix.S_ISUID|unix.S_ISGID|0o022) == 0
}

// parseConmon reads a conmon's arguments (conmon(8)). Those of "podman exec" have another id for the session
// (-u), and CRI-O's have the pod's control group.
func parseConmon(args []string) (conmon, bool) {
	var c conmon
	var session string
	for i := 1; i+1 < len(args) && args[i] != "--exit-command"; i++ {
		to := map[string]*string{
			"-c": &c.id, "--cid": &c.id, "-n": &c.name, "--name": &c.name, "-u": &session, "--cuuid": &session,
		}[args[i]]
		if to != nil {
			i++
			*to = args[i]
		}
	}
	return c, isID(c.id) && session == c.id && dockerName().MatchString(c.name) && len(c.name) <= mostName &&
		slices.Contains(args, "--exit-command")
}

// machine holds on to the container's leader.
func (c conmon) machine(context.Context) (*machine.Machine, error) {
	monitor, err := machine.OpenLeader(c.pid)
	if err != nil {
		return nil, c.gone()
	}
	defer monitor.Close()
	// A container with a pid namespace of its own has a first process; else it is the child that came first.
	children := machine.Children(c.pid)
	first := slices.IndexFunc(children, func(pid int) bool { s, err := machine.StatusOf(pid); return err == nil && s.First() })
	if len(children) == 0 {
		return nil, c.gone()
	}
	leader, err := machine.OpenLeader(children[max(0, first)])
	if err != nil {
		return nil, c.gone()
	}
	s, err := machine.StatusOf(leader.PID)
	if err == nil && s.Parent != c.pid || !monitor.Alive() {
		err = c.gone()
	}
	if err == nil {
		err = c.owner.verify(leader, c.gone)
	}
	if err != nil {
		_ = leader.Close() // the error that matters is the other one
		return nil, err
	}
	return &machine.Machine{Kind: "podman", Name: c.ref(), Class: "container", Service: "podman", Leader: leader}, nil
}

func (c conmon) gone() error {
	hint := "start it: podman start " + c.name
	if c.owner.uid != 0 {
		hint += ", as " + c.owner.name
	}
	return fail.New(fail.NotRunning, hint, "Podman container %q is starting or has just ended", c.ref())
}
