//go:build integration

// The tests in files with the tag "integration" run on a real systemd host with LXC, as root, with the
// product installed; see internal/testhost.

package lxc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/lxc/monitor"
)

// patience bounds every wait of a test.
const patience = 30 * time.Second

// alice is a user of the test host.
const (
	alice    = 1000
	aliceLXC = "/home/alice/.local/share/lxc"
)

func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // not t's: clean-ups run commands, too
	t.Cleanup(cancel)
	return ctx
}

// outcome is what a finished command left.
type outcome struct {
	stdout, stderr string
	code           int
}

func run(t testing.TB, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%q: %v, %v\n%s%s", args, err, ctx.Err(), &stdout, &stderr)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command and returns its output; anything but exit status 0 ends the test.
func must(t testing.TB, args ...string) string {
	t.Helper()
	o := run(t, args...)
	if o.code != 0 {
		t.Fatalf("%q: exit status %d\n%s%s", args, o.code, o.stdout, o.stderr)
	}
	return strings.TrimSpace(o.stdout)
}

// container is a container of a test.
type container struct {
	t    testing.TB
	path string // lxcpath
	name string
	uid  int // whose it is
}

// create makes a container that is like the slim machine, with more lines of configuration, and does not
// start it.
func create(t testing.TB, lxcpath, name string, uid int, more ...string) container {
	t.Helper()
	c := container{t, lxcpath, name, uid}
	rootfs := filepath.Join(lxcpath, name, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.kill()
		if err := os.RemoveAll(filepath.Join(lxcpath, name)); err != nil {
			t.Error(err)
		}
	})
	must(t, "cp", "-a", "/var/lib/machines/slim/.", rootfs)
	config := strings.Join(append([]string{
		"lxc.uts.name = " + name[:min(len(name), 60)],
		"lxc.rootfs.path = dir:" + rootfs,
		"lxc.apparmor.profile = unconfined",
		"lxc.net.0.type = empty",
		"lxc.init.cmd = /usr/bin/slim",
		"lxc.mount.auto = proc:mixed sys:ro",
	}, more...), "\n") + "\n"
	if err := os.WriteFile(filepath.Join(lxcpath, name, "config"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

// privileged starts a container of the system without a user namespace.
func privileged(t testing.TB, name string) container {
	t.Helper()
	c := create(t, monitor.SystemPath, name, 0)
	c.start()
	return c
}

// mapped starts one that root has given a user namespace.
func mapped(t testing.TB, name string) container {
	t.Helper()
	c := create(t, monitor.SystemPath, name, 0, "lxc.idmap = u 0 100000 65536", "lxc.idmap = g 0 100000 65536")
	must(t, "chown", "--recursive", "--no-dereference", "100000:100000", filepath.Join(c.path, name, "rootfs"))
	c.start()
	return c
}

// users starts one of alice's, where she is root. It needs no help of root's: a user may map the own uid.
func users(t testing.TB, name string) container {
	t.Helper()
	c := create(t, aliceLXC, name, alice, "lxc.idmap = u 0 1000 1", "lxc.idmap = g 0 1000 1")
	must(t, "chown", "--recursive", "--no-dereference", "alice:alice", "/home/alice")
	c.start()
	return c
}

// start starts the container and waits until it runs.
func (c container) start() {
	c.t.Helper()
	if c.uid == 0 {
		must(c.t, "lxc-start", "-P", c.path, "-n", c.name)
	} else {
		// Delegate= gives her the control groups that LXC wants to make.
		must(c.t, "systemd-run", "--quiet", "--collect", "--unit="+c.unit(), "--property=User="+strconv.Itoa(c.uid),
			"--property=Delegate=yes", "--setenv=HOME=/home/alice", "lxc-start", "-P", c.path, "-F", "-n", c.name)
	}
	c.wait("RUNNING")
}

func (c container) unit() string { return "test-lxc-" + c.name + ".service" }

// tool runs one of LXC's tools on the container, as its user.
func (c container) tool(name string, args ...string) outcome {
	c.t.Helper()
	args = append([]string{name, "-P", c.path, "-n", c.name}, args...)
	if c.uid != 0 {
		args = append([]string{"runuser", "-u", "alice", "--"}, args...)
	}
	return run(c.t, args...)
}

func (c container) wait(state string) {
	c.t.Helper()
	if o := c.tool("lxc-wait", "-s", state, "-t", "30"); o.code != 0 {
		c.t.Fatalf("%s is not %s: %s%s", c.name, state, o.stdout, o.stderr)
	}
}

// kill ends the container, whatever state it is in.
func (c container) kill() {
	if c.uid != 0 {
		_ = exec.Command("systemctl", "kill", "--signal=KILL", c.unit()).Run() // it may not run
	} else {
		_ = exec.Command("lxc-stop", "-P", c.path, "-n", c.name, "--kill").Run()
	}
	c.wait("STOPPED")
}

// pid returns the leader's process id as LXC tells it.
func (c container) pid() int {
	c.t.Helper()
	o := c.tool("lxc-info", "-p", "-H")
	pid, err := strconv.Atoi(strings.TrimSpace(o.stdout))
	if err != nil {
		c.t.Fatalf("lxc-info of %s: %v, %s", c.name, err, o.stderr)
	}
	return pid
}

// ref is the container's typed name.
func (c container) ref() string {
	if c.uid != 0 {
		return "lxc:" + c.name + "@alice"
	}
	return "lxc:" + c.name
}

// stopMonitor stops the container's monitor, so that it answers nobody.
func (c container) stopMonitor() {
	c.t.Helper()
	pid := parentOf(c.t, c.pid())
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) }) // it may have been killed
}

// hold is a pidfd of the leader.
func (c container) hold() *machine.Leader {
	c.t.Helper()
	l, err := machine.OpenLeader(c.pid())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = l.Close() })
	return l
}

// resolvers are the two that must agree.
func resolvers() map[string]machine.Resolver {
	return map[string]machine.Resolver{"liblxc": NewResolver(), "monitor": monitor.Resolver{}}
}

// parentOf returns a process's parent.
func parentOf(t testing.TB, pid int) int {
	t.Helper()
	parent, err := strconv.Atoi(strings.Fields(must(t, "cat", fmt.Sprintf("/proc/%d/stat", pid)))[3])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// count returns how many entries a directory of /proc has.
func count(t testing.TB, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// memory returns the resident memory of this process in KiB.
func memory(t testing.TB) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() / 1024
}
