package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Scopes resolves containers by the start of their id, which is in the name of their control group, so that no
// engine need be asked: those of containerd, CRI-O, and Kubernetes with either of them.
//
//	/system.slice/nerdctl-3f2a….scope
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0c5e….slice/cri-containerd-3f2a….scope
//	/kubepods/burstable/pod0c5e…/3f2a…                (a kubelet that does not use systemd)
//
// Names of control groups are claims like any other. Those that count are in slices, which systemd gives to
// nobody; what is below a service or a scope, where users and containers may have groups of their own, is not
// looked at.
type Scopes struct {
	kind string // "containerd", "crio", "docker", or "k8s" for all that belong to a pod
}

var _ machine.Resolver = (*Scopes)(nil)

// scopes are the names that engines give to the control groups of containers. The first group is the id.
var scopes = map[string]func() *regexp.Regexp{
	"containerd": pattern(`^(?:cri-containerd|nerdctl)-([0-9a-f]{64})\.scope$`),
	"crio":       pattern(`^crio-([0-9a-f]{64})\.scope$`),
	"docker":     pattern(`^docker-([0-9a-f]{64})\.scope$`),
	"k8s":        pattern(`^(?:(?:cri-containerd|crio|docker)-)?([0-9a-f]{64})(?:\.scope)?$`),
}

// podName is the control group of a pod: its uid is in it, with "_" for "-" where the group is a slice.
var podName = pattern(`pod([0-9a-f]{8}[0-9a-f_-]{1,28})(?:\.slice)?$`)

// scope is a container's control group.
type scope struct {
	group string // from the root of the hierarchy: "/system.slice/nerdctl-3f2a….scope"
	id    string
	pod   string // uid, with "-"; empty if it belongs to none
}

func isID(s string) bool { return scopes["k8s"]().MatchString(s) && len(s) == 64 }

// Kind returns the engine's name, "crio".
func (s *Scopes) Kind() string { return s.kind }

// idStart is what may be the start of a container's id, or of a pod's uid.
var idStart = pattern(`^[0-9a-f][0-9a-f-]*$`)

// Resolve finds a running container by the start of its id; with the kind "k8s" also by the start of the uid of
// a pod that has only one. The caller closes it. Errors carry fail.NoSuchMachine, fail.NotRunning,
// fail.AmbiguousMachine or fail.NotAContainer.
func (s *Scopes) Resolve(ctx context.Context, id string) (*machine.Machine, error) {
	none := fail.New(fail.NoSuchMachine, "", "no container of %s has an id that starts with %q", s.kind, id)
	if !idStart().MatchString(id) {
		return nil, none
	}
	list, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c scope) bool {
		return !strings.HasPrefix(c.id, id) && (c.pod == "" || !strings.HasPrefix(c.pod, id) || c.isPause())
	})
	switch len(list) {
	case 0:
		return nil, none
	case 1:
		return s.machine(list[0])
	}
	var refs []string
	for _, c := range list {
		refs = append(refs, s.kind+":"+c.id[:shortID])
	}
	return nil, fail.New(fail.AmbiguousMachine, "say which: "+strings.Join(refs, " or "),
		"more than one container of %s has an id or a pod that starts with %q", s.kind, id)
}

// shortID is how much of an id is shown, and told apart by.
const shortID = 12

// List returns the running containers, sorted by id.
func (s *Scopes) List(ctx context.Context) ([]machine.Info, error) {
	list, err := s.all(ctx)
	var rows []machine.Info
	for _, c := range list {
		if pid := c.leader(); pid != 0 && !c.isPause() {
			rows = append(rows, machine.Info{Kind: s.kind, Name: c.id[:shortID], Class: "container", Service: commOf(pid), Leader: pid})
		}
	}
	slices.SortFunc(rows, func(a, b machine.Info) int { return strings.Compare(a.Name, b.Name) })
	return rows, err
}

// all returns the containers that there are.
func (s *Scopes) all(ctx context.Context) ([]scope, error) {
	type groups struct{}
	all, err := machine.Shared(ctx, groups{}, func() ([]string, error) { return containerGroups(ctx) })
	if err != nil {
		return nil, fmt.Errorf("looking for the control groups of containers: %w", err)
	}
	var list []scope
	for _, group := range all {
		if c, ok := s.parse(group); ok {
			list = append(list, c)
		}
	}
	return list, nil
}

// containerName is what the control group of any engine's container is called.
var containerName = pattern(`^(?:[a-z-]+-)?[0-9a-f]{64}(?:\.scope)?$`)

// containerGroups returns the control groups that are called like containers.
func containerGroups(ctx context.Context) ([]string, error) {
	var groups []string
	top := hierarchy()
	err := filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // it ended meanwhile
		case err != nil:
			return err
		case dir == top || !d.IsDir():
			return nil
		}
		group := strings.TrimPrefix(dir, top)
		if containerName().MatchString(d.Name()) {
			groups = append(groups, group)
			return fs.SkipDir
		}
		if !strings.HasSuffix(group, ".slice") && !isPods(group) {
			return fs.SkipDir
		}
		return nil
	})
	return groups, err
}

// hierarchy is where control groups are: the unified hierarchy, or the one that systemd uses beside others.
func hierarchy() string {
	const unified, systemd = "/sys/fs/cgroup", "/sys/fs/cgroup/systemd"
	if _, err := os.Stat(unified + "/cgroup.procs"); err != nil {
		return systemd
	}
	return unified
}

// isPods reports whether a control group is one that a kubelet without systemd has made for pods.
func isPods(group string) bool {
	return group == "/kubepods" || strings.HasPrefix(group, "/kubepods/")
}

// parse reads the name of a control group.
func (s *Scopes) parse(group string) (scope, bool) {
	m := scopes[s.kind]().FindStringSubmatch(path.Base(group))
	if m == nil {
		return scope{}, false
	}
	c := scope{group: group, id: m[1]}
	if pod := podName().FindStringSubmatch(path.Base(path.Dir(group))); pod != nil && strings.HasPrefix(group, "/kubepods") {
		c.pod = strings.ReplaceAll(pod[1], "_", "-")
	}
	return c, s.kind != "k8s" || c.pod != ""
}

// isPause reports whether the container is the one that only holds a pod's namespaces.
func (c scope) isPause() bool { return commOf(c.leader()) == "pause" }

// leader returns the container's first process, 0 if it has none: process 1 of the outermost pid namespace, or,
// in a pod that shares one or has the host's, the process that came first.
func (c scope) leader() int {
	best, depth, began := 0, 0, uint64(0)
	for _, pid := range members(hierarchy() + c.group) {
		s, err := machine.StatusOf(pid)
		if err != nil {
			continue
		}
		d, start := 1<<30, startOf(pid)
		if s.First() {
			d = len(s.NSPID)
		}
		if best == 0 || d < depth || d == depth && start < began {
			best, depth, began = pid, d, start
		}
	}
	return best
}

// members returns the processes in a control group and those below it.
func members(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(dir string, d fs.DirEntry, err error) error { // what has gone has no processes
		if err != nil || !d.IsDir() {
			return nil
		}
		list, _ := os.ReadFile(dir + "/cgroup.procs")
		for _, f := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// startOf returns when a process started, in clock ticks since boot (proc_pid_stat(5), field 22).
func startOf(pid int) uint64 {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name, in parentheses, may have any character in it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[19], 10, 64)
	return ticks
}

// machine holds on to the container's leader, and makes sure that it is in the container's control group.
func (s *Scopes) machine(c scope) (*machine.Machine, error) {
	gone := func() error {
		return fail.New(fail.NotRunning, "", "container %q of %s has just ended", c.id[:shortID], s.kind)
	}
	leader, err := machine.OpenLeader(c.leader())
	if fail.Is(err, fail.NotRunning) {
		return nil, gone()
	}
	if err != nil {
		return nil, err
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", leader.PID))
	if err == nil && !inCgroup(string(cgroups), c.group) || errors.Is(err, fs.ErrNotExist) {
		err = gone()
	}
	if err == nil {
		err = owner{}.verify(leader, gone)
	}
	if err != nil {
		_ = leader.Close() // the error that matters is the other one
		return nil, err
	}
	return &machine.Machine{
		Kind: s.kind, Name: c.id[:shortID], Class: "container", Service: commOf(leader.PID), Unit: unitOf(c.group), Leader: leader,
	}, nil
}

// unitOf returns the unit whose control group it is, "" for a group that systemd has not made.
func unitOf(group string) string {
	if name := path.Base(group); strings.HasSuffix(name, ".scope") {
		return name
	}
	return ""
}
