package engine

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Engines returns a resolver for each engine that there may be on a host. It is the place to add one more: one
// whose daemon tells the process id of a container's leader is a [Daemon], one whose control groups tell the
// containers' ids is a row of [scopes].
func Engines() []machine.Resolver {
	engines := []machine.Resolver{
		&Daemon{
			kind: "docker", title: "Docker", program: "dockerd", start: "systemctl start docker",
			sockets: []string{"/run/docker.sock"}, userSocket: "/run/user/%d/docker.sock",
			find: findDocker, list: listDocker, scopes: &Scopes{kind: "docker"},
		},
		Podman{},
		&Daemon{
			kind: "incus", title: "Incus", program: "incusd", start: "systemctl start incus",
			sockets: []string{"/run/incus/unix.socket", "/var/lib/incus/unix.socket"},
			find:    findIncus("incus"), list: listIncus("incus"),
		},
		&Daemon{
			kind: "lxd", title: "LXD", program: "lxd", start: "snap start lxd",
			sockets: []string{"/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"},
			find:    findIncus("lxc"), list: listIncus("lxc"),
		},
	}
	for _, kind := range []string{"containerd", "crio", "k8s"} {
		engines = append(engines, &Scopes{kind: kind})
	}
	return engines
}

// mostName is how long the name of a container may be, in bytes.
const mostName = 255

// pattern compiles a regular expression when it is first used. Programs start quicker without.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// dockerName is what may be the name of a Docker or Podman container, or the start of an id.
var dockerName = pattern(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// findDocker asks for a container by name, or by a start of its id that only one has
// (docs.docker.com/reference/api/engine, ContainerInspect).
func findDocker(q question) (found, error) {
	none := fail.New(fail.NoSuchMachine, "see docker ps", "Docker knows no container %q", q.name)
	if !dockerName().MatchString(q.name) {
		return found{}, none
	}
	var c struct {
		Id, Name string
		State    struct {
			Status  string
			Running bool
			Pid     int
		}
	}
	err := q.get(q, "/containers/"+q.name+"/json", &c)
	switch {
	case isStatus(err, http.StatusNotFound):
		return found{}, none
	case isStatus(err, http.StatusBadRequest):
		return found{}, fail.New(fail.AmbiguousMachine, "see docker ps; type more of the id",
			"more than one Docker container has an id that starts with %q", q.name)
	case err != nil:
		return found{}, fmt.Errorf("asking Docker for the container %q: %w", q.name, err)
	}
	f := found{name: strings.TrimPrefix(c.Name, "/"), state: "not running"}
	if dockerName().MatchString(c.State.Status) {
		f.state = c.State.Status
	}
	if !dockerName().MatchString(f.name) || len(f.name) > mostName {
		// A user may have made the daemon.
		return found{}, fmt.Errorf("asking Docker for the container %q: it is called %.60q, which is no name", q.name, f.name)
	}
	f.hint = "start it: docker start " + f.name
	if c.State.Running {
		f.pid = c.State.Pid
	}
	return f, nil
}

func listDocker(q question) ([]found, error) {
	var rows []struct{ Id string }
	if err := q.get(q, "/containers/json", &rows); err != nil {
		return nil, fmt.Errorf("asking Docker for its containers: %w", err)
	}
	var list []found
	for _, r := range rows {
		q.name = r.Id
		c, err := findDocker(q)
		switch {
		case fail.Is(err, fail.NoSuchMachine):
			continue // it ended since it was listed
		case err != nil:
			return list, err
		}
		list = append(list, c)
	}
	return list, nil
}

// instance is what is used of an instance of Incus or LXD.
type instance struct {
	Name, Type, Status, Project string
	State                       struct{ Pid int }
}

// found is the instance as others see it: "web", or "web@blue" in the project "blue".
func (i instance) found(tool string) found {
	f := found{name: i.Name, state: strings.ToLower(i.Status), hint: "start it: " + tool + " start " + i.Name}
	if i.Project != "" && i.Project != "default" {
		f.name += "@" + i.Project
		f.hint += " --project " + i.Project
	}
	if i.Status == "Running" || i.Status == "Frozen" {
		f.pid = i.State.Pid
	}
	return f
}

// findIncus asks for an instance by name (linuxcontainers.org/incus/docs/main/api, LXD's is the same). With
// recursion its state comes along.
func findIncus(tool string) func(question) (found, error) {
	return func(q question) (found, error) {
		name, project, _ := strings.Cut(q.name, "@")
		none := fail.New(fail.NoSuchMachine, "see "+tool+" list --all-projects", "no instance %q is known", q.name)
		var answer struct{ Metadata instance }
		query := url.Values{"recursion": {"1"}, "project": {project}}
		if project == "" {
			query.Set("project", "default")
		}
		err := q.get(q, "/1.0/instances/"+url.PathEscape(name)+"?"+query.Encode(), &answer)
		switch {
		case isStatus(err, http.StatusNotFound, http.StatusBadRequest):
			return found{}, none
		case err != nil:
			return found{}, fmt.Errorf("asking for the instance %q: %w", q.name, err)
		case answer.Metadata.Name != name:
			return found{}, none
		case answer.Metadata.Type != "container":
			return found{}, fail.New(fail.NotAContainer, "only containers share the host's kernel and can be attached to",
				"the instance %q is a %s", q.name, answer.Metadata.Type)
		}
		return answer.Metadata.found(tool), nil
	}
}

func listIncus(tool string) func(question) ([]found, error) {
	return func(q question) ([]found, error) {
		var answer struct{ Metadata []instance }
		if err := q.get(q, "/1.0/instances?recursion=2&all-projects=true", &answer); err != nil {
			return nil, fmt.Errorf("asking for the instances: %w", err)
		}
		var list []found
		for _, i := range answer.Metadata {
			if i.Type == "container" {
				list = append(list, i.found(tool))
			}
		}
		return list, nil
	}
}
