//go:build integration

// The tests in files with the tag "integration" run on a real systemd host, as root, with the product
// installed and three machines running; see package testhost.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The machines of the test host.
const (
	booted = "deb"  // a Debian that was booted
	userns = "debu" // the same in a user namespace
	slim   = "slim" // one program and its libraries
)

var machines = []string{booted, userns, slim}

// outcome is what a finished command left.
type outcome struct {
	stdout, stderr string
	code           int
}

// attachTo runs cntr-attach to its end.
func attachTo(t *testing.T, args ...string) outcome {
	t.Helper()
	return attachWith(t, nil, args...)
}

// attachWith does so with something on stdin.
func attachWith(t *testing.T, stdin io.Reader, args ...string) outcome {
	t.Helper()
	return runCommand(t, stdin, append([]string{"cntr-attach"}, args...)...)
}

func runCommand(t *testing.T, stdin io.Reader, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout) // not t's: clean-ups run commands, too
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	cmd.WaitDelay = time.Second // for who keeps the output open
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v", args, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%q did not end within %v\nstdout: %s\nstderr: %s", args, runTimeout, &stdout, &stderr)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// succeeds runs cntr-attach and returns its output; anything but exit status 0 ends the test.
func succeeds(t *testing.T, args ...string) string {
	t.Helper()
	o := attachTo(t, args...)
	if o.code != 0 {
		t.Fatalf("cntr-attach %q: exit status %d\nstdout: %s\nstderr: %s", args, o.code, o.stdout, o.stderr)
	}
	return o.stdout
}

// must runs a command of the host and returns its output.
func must(t *testing.T, args ...string) string {
	t.Helper()
	o := runCommand(t, nil, args...)
	if o.code != 0 {
		t.Fatalf("%q: exit status %d\nstdout: %s\nstderr: %s", args, o.code, o.stdout, o.stderr)
	}
	return strings.TrimSuffix(o.stdout, "\n")
}

// leaderOf returns the process id of a machine's leader.
func leaderOf(t *testing.T, machine string) int {
	t.Helper()
	pid, err := strconv.Atoi(must(t, "machinectl", "show", "--property=Leader", "--value", machine))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// running is a cntr-attach that goes on while the test looks at it.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *os.File
	stderr bytes.Buffer
	done   chan struct{}
}

// start starts cntr-attach with pipes. It is killed at the test's end if it still runs.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	return startCommand(t, append([]string{"cntr-attach"}, args...)...)
}

func startCommand(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{t: t, cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	r.launch()
	return r
}

// launch starts the command, with pipes.
func (r *running) launch() {
	r.t.Helper()
	var err error
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	r.stdout = out
	r.cmd.Stdout, r.cmd.Stderr = in, &r.stderr
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	_ = in.Close()
	go func() {
		_ = r.cmd.Wait()
		close(r.done)
	}()
	r.t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.done
		_ = r.stdout.Close()
	})
}

// line reads a line of output.
func (r *running) line() string {
	r.t.Helper()
	_ = r.stdout.SetReadDeadline(time.Now().Add(runTimeout))
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := r.stdout.Read(b); err != nil {
			_ = r.cmd.Process.Kill()
			<-r.done
			r.t.Fatalf("%q: %v after %q\nstderr: %s", r.cmd.Args, err, line, &r.stderr)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// exit waits for the end, at most so long, and returns the exit status.
func (r *running) exit(limit time.Duration) int {
	r.t.Helper()
	select {
	case <-r.done:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		r.t.Fatalf("%q did not end within %v", r.cmd.Args, limit)
		return -1
	}
}

// sleeper starts a session that sleeps, and returns it with the scope that it is in. The arguments end
// with the machine.
func sleeper(t *testing.T, args ...string) (*running, string) {
	t.Helper()
	machine := args[len(args)-1]
	r := start(t, append(args, "sh", "-c", "echo ready; exec sleep 1000")...)
	if got := r.line(); got != "ready" {
		t.Fatalf("got %q", got)
	}
	for _, scope := range scopes(t) {
		if strings.HasPrefix(scope, "cntr-"+machine+"-") {
			return r, scope
		}
	}
	t.Fatalf("no scope for %s: %q", machine, scopes(t))
	return nil, ""
}

// scopes lists the scopes of sessions.
func scopes(t *testing.T) []string {
	t.Helper()
	return strings.Fields(must(t, "sh", "-c", `systemctl list-units --plain --no-legend 'cntr-*.scope' | cut -d' ' -f1`))
}

// processes returns the process ids in a unit.
func processes(t *testing.T, unit string) []int {
	t.Helper()
	cgroup := must(t, "systemctl", "show", "--property=ControlGroup", "--value", unit)
	data, err := os.ReadFile("/sys/fs/cgroup" + cgroup + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// sessionProcess returns the session process of a scope.
func sessionProcess(t *testing.T, scope string) int {
	t.Helper()
	for _, pid := range processes(t, scope) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "cntr-session\n" {
			return pid
		}
	}
	t.Fatalf("%s has no session process", scope)
	return 0
}

// holder holds on to processes, so that it can be told when they have ended.
type holder map[int]int

func hold(t *testing.T, pids ...int) holder {
	t.Helper()
	h := holder{}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		h[pid] = fd
	}
	t.Cleanup(func() {
		for _, fd := range h {
			_ = unix.Close(fd)
		}
	})
	return h
}

// end waits until all have ended, at most so long.
func (h holder) end(t *testing.T, limit time.Duration) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for pid, fd := range h {
		n, err := 0, error(unix.EINTR)
		for errors.Is(err, unix.EINTR) { // the Go runtime sends itself signals
			ms := int(max(0, time.Until(deadline).Milliseconds()))
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
		}
		if err != nil || n != 1 {
			state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", pid))
			t.Errorf("process %d still runs after %v\n%s\n%s", pid, limit, state, stack)
		}
	}
}
