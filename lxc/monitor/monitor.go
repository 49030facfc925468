package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Kind is the prefix of typed names, "lxc:web".
const Kind = "lxc"

// SystemPath is where containers of the system are, unless liblxc was told otherwise.
const SystemPath = "/var/lib/lxc"

// Container is a container that has a monitor.
type Container struct {
	Path string // lxcpath
	Name string
	UID  uint32 // whose it is: who listens on its command socket
	User string // the user's name, or number if there is none; empty for root

	inode uint64 // of the command socket
}

// Ref is the name by which the container is known to users: "web", or "web@alice".
func (c Container) Ref() string {
	if c.UID == 0 {
		return c.Name
	}
	return c.Name + "@" + c.User
}

// mostOfUser is how many claims of one user are looked into, as anybody can make any number of them.
const mostOfUser = 32

// Find finds the container that is meant by a name: "web" is root's, "web@alice" alice's. lxcpath is that
// of the system, needed only for names so long that their sockets do not tell them. Errors carry
// fail.NoSuchMachine or fail.AmbiguousMachine.
func Find(ctx context.Context, lxcpath, name string) (Container, error) {
	if !usable(name) {
		return Container{}, fail.New(fail.NoSuchMachine, "", "%q cannot be the name of an LXC container", name)
	}
	bare, _, _ := cutLast(name, "@")
	list, full, err := find(ctx, func(c *claim) bool {
		if c.address == address(lxcpath, name) {
			c.lxcpath, c.name = lxcpath, name
		}
		return c.name == name || c.name == bare
	})
	if err != nil {
		return Container{}, err
	}
	var its, others []Container
	for _, c := range list {
		switch {
		case c.Ref() == name:
			its = append(its, c)
		case c.Name == name:
			others = append(others, c)
		}
	}
	switch {
	case len(its) == 1:
		return its[0], nil
	case len(its) > 1:
		var paths []string
		for _, c := range its {
			paths = append(paths, c.Path)
		}
		return Container{}, fail.New(fail.AmbiguousMachine, "name its first process, pid:N, which lxc-info -P tells",
			"more than one LXC container is called %q, in %s", name, strings.Join(paths, " and "))
	case len(full) > 0:
		return Container{}, fmt.Errorf("the monitor of LXC container %q does not answer: %w", name, unix.EAGAIN)
	case len(others) > 0:
		var refs []string
		for _, c := range others {
			refs = append(refs, Kind+":"+c.Ref())
		}
		return Container{}, fail.New(fail.NoSuchMachine, "did you mean "+strings.Join(refs, " or ")+"?",
			"the system has no LXC container %q that runs", name)
	}
	hint := "see lxc-ls --running"
	if _, who, found := cutLast(name, "@"); found {
		hint = fmt.Sprintf("if %s has it, start it as %s: lxc-start -n %s", who, who, bare)
	}
	return Container{}, fail.New(fail.NoSuchMachine, hint, "no LXC container %q runs", name)
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i <= 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// All returns all containers, root's first, then by name. Those whose monitor has not answered so many
// questions that it can be asked no more are left out, as nobody knows whose they are.
func All(ctx context.Context) ([]Container, error) {
	list, _, err := find(ctx, func(c *claim) bool { return c.name != "" })
	return list, err
}

// find returns the containers whose sockets are wanted, and the sockets that take no connection any more. The
// function may complete what the socket tells.
func find(ctx context.Context, wanted func(*claim) bool) (list []Container, full []claim, err error) {
	sockets, err := claims()
	if err != nil {
		return nil, nil, fmt.Errorf("listing the monitors of LXC containers: %w", err)
	}
	names, count := map[uint32]string{0: ""}, map[uint32]int{}
	for _, s := range sockets {
		if !wanted(&s) {
			continue
		}
		uid, err := listener(ctx, s.address)
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case errors.Is(err, unix.EAGAIN):
			full = append(full, s)
			continue
		case err != nil:
			continue // it has ended, or is nobody's who would answer
		}
		if count[uid]++; uid != 0 && count[uid] > mostOfUser {
			continue
		}
		if _, known := names[uid]; !known {
			names[uid] = userName(uid)
		}
		list = append(list, Container{Path: s.lxcpath, Name: s.name, UID: uid, User: names[uid], inode: s.inode})
	}
	slices.SortFunc(list, func(a, b Container) int {
		return cmp.Or(cmp.Compare(min(a.UID, 1), min(b.UID, 1)), strings.Compare(a.Ref(), b.Ref()),
			strings.Compare(a.Path, b.Path))
	})
	return list, full, nil
}

// userName returns the name of a user of the host.
func userName(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(number)
	if err != nil || !usable(u.Username) {
		return number
	}
	return u.Username
}

// Machine holds on to the container's leader, found without asking the monitor. The caller closes the
// machine. Errors carry fail.NotRunning or fail.NotAContainer.
func (c Container) Machine(ctx context.Context) (*machine.Machine, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	return c.WithLeader(leader), nil
}

// WithLeader is the machine that the container is.
func (c Container) WithLeader(l *machine.Leader) *machine.Machine {
	return &machine.Machine{Kind: Kind, Name: c.Ref(), Class: "container", Service: "lxc", Leader: l}
}

// NotRunning is the failure of a container that does not run: "web is stopping".
func (c Container) NotRunning(what string) error {
	return fail.New(fail.NotRunning, c.startHint(), "LXC container %q %s", c.Ref(), what)
}

func (c Container) startHint() string {
	hint := "start it: lxc-start -n " + c.Name
	if c.Path != SystemPath {
		hint = fmt.Sprintf("start it: lxc-start -P %s -n %s", c.Path, c.Name)
	}
	if c.UID != 0 {
		hint += ", as " + c.User
	}
	return hint
}

// Resolver finds containers where there is no liblxc to ask. It knows only those that run.
type Resolver struct{}

var _ machine.Resolver = Resolver{}

// Kind returns "lxc".
func (Resolver) Kind() string { return Kind }

// Resolve finds a running container; see [Find] for the names. The caller closes it. Errors carry
// fail.NoSuchMachine, fail.AmbiguousMachine, fail.NotRunning or fail.NotAContainer.
func (Resolver) Resolve(ctx context.Context, name string) (*machine.Machine, error) {
	c, err := Find(ctx, SystemPath, name)
	if err != nil {
		return nil, err
	}
	return c.Machine(ctx)
}

// List returns the running containers, sorted by name.
func (Resolver) List(ctx context.Context) ([]machine.Info, error) {
	list, err := All(ctx)
	if err != nil {
		return nil, err
	}
	return machine.Rows(ctx, list, Container.Machine)
}
