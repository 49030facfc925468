package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	golxc "github.com/lxc/go-lxc"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/lxc/monitor"
)

// systemPath returns liblxc's lxcpath: that of /etc/lxc/lxc.conf, else the one that it was built with.
func systemPath(ctx context.Context, c *calls) (string, error) {
	path, err := call(ctx, c, "", golxc.DefaultConfigPath, func(string) {})
	if err != nil {
		return "", fmt.Errorf("asking liblxc for the lxcpath: %w", err)
	}
	return path, nil
}

// answer is what liblxc says about a running container.
type answer struct {
	leader *machine.Leader // owned by the answer
	root   string
	err    error
}

func (a answer) close() {
	if a.leader != nil {
		_ = a.leader.Close()
	}
}

// ask asks liblxc about a container of the system. It may hang.
func ask(c monitor.Container) answer {
	// lxc_container_new destroys a container that lxc-create has not finished and does not work on any more.
	// That is for lxc-ls to do, not for who only looks.
	if _, err := os.Lstat(filepath.Join(c.Path, c.Name, "partial")); err == nil {
		return answer{err: c.NotRunning("is being created")}
	}
	container, err := golxc.NewContainer(c.Name, c.Path)
	if err != nil {
		return answer{err: fmt.Errorf("LXC container %q: liblxc cannot read its configuration: %w", c.Name, err)}
	}
	defer func() { _ = container.Release() }() // it fails for a container that was released

	if state := container.State(); !isRunning(state) {
		return answer{err: c.NotRunning("is " + strings.ToLower(state.String()))}
	}
	leader, err := leaderOf(container)
	if fail.Is(err, fail.NotRunning) || err != nil && !isRunning(container.State()) {
		return answer{err: c.NotRunning("has just ended")}
	}
	if err != nil {
		return answer{err: fmt.Errorf("LXC container %q: %w", c.Name, err)}
	}
	return answer{leader: leader, root: root(container)}
}

func isRunning(state golxc.State) bool {
	switch state {
	case golxc.RUNNING, golxc.FREEZING, golxc.FROZEN, golxc.THAWED:
		return true
	}
	return false
}

// leaderOf gets a pidfd from the monitor, or from a monitor that has none to give, on kernels that did not
// when it started, the number.
func leaderOf(container *golxc.Container) (*machine.Leader, error) {
	pidfd, err := container.InitPidFd()
	if err == nil {
		return machine.AdoptLeader(pidfd)
	}
	pid := container.InitPid()
	if pid <= 0 {
		return nil, errors.Join(errors.New("its monitor does not tell its first process"), err)
	}
	return machine.OpenLeader(pid)
}

// root returns the root directory, "/var/lib/lxc/web/rootfs" for "dir:/var/lib/lxc/web/rootfs", and nothing
// for what is no directory on the host (lxc.container.conf(5), "lxc.rootfs.path").
func root(container *golxc.Container) string {
	value := strings.Join(container.ConfigItem("lxc.rootfs.path"), "")
	if kind, path, typed := strings.Cut(value, ":"); typed && kind == "dir" {
		value = path
	}
	if !filepath.IsAbs(value) {
		return ""
	}
	return value
}
