//go:build integration

// The tests in files with the tag "integration" run on a real systemd host, as root, with the product
// installed; see internal/testhost.

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// patience bounds every wait of a test.
const patience = 30 * time.Second

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newServices(t *testing.T) *Service {
	t.Helper()
	s := &Service{}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// outcome is what a finished command left.
type outcome struct {
	stdout, stderr string
	code           int
}

func run(t *testing.T, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // not t's: clean-ups run commands, too
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
func must(t *testing.T, args ...string) string {
	t.Helper()
	o := run(t, args...)
	if o.code != 0 {
		t.Fatalf("%q: exit status %d\n%s%s", args, o.code, o.stdout, o.stderr)
	}
	return strings.TrimSpace(o.stdout)
}

// startService starts a service that sleeps, and returns its main process. The command is looked up in the
// service's root.
func startService(t *testing.T, unit string, command []string, properties ...string) int {
	t.Helper()
	args := []string{"systemd-run", "--quiet", "--collect", "--unit=" + unit, "--property=Type=exec"}
	for _, p := range properties {
		args = append(args, "--property="+p)
	}
	must(t, append(args, command...)...)
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "kill", "--signal=KILL", unit).Run() // it may have ended
		_ = exec.Command("systemctl", "stop", unit).Run()
	})
	return mainPIDOf(t, unit)
}

func mainPIDOf(t *testing.T, unit string) int {
	t.Helper()
	pid, err := strconv.Atoi(must(t, "systemctl", "show", "--property=MainPID", "--value", unit))
	if err != nil || pid == 0 {
		t.Fatalf("%s has process %d, %v", unit, pid, err)
	}
	return pid
}

var sleep = []string{"sleep", "infinity"}

func TestResolveService(t *testing.T) {
	pid := startService(t, "test-svc.service", sleep, "PrivateTmp=yes")
	r := newServices(t)
	for _, name := range []string{"test-svc", "test-svc.service"} {
		m, err := r.Resolve(bounded(t), name)
		if err != nil {
			t.Fatal(err)
		}
		want := machine.Machine{
			Kind: "unit", Name: "test-svc.service", Class: "service", Service: "systemd", Unit: "test-svc.service", Leader: m.Leader,
		}
		if *m != want || m.Leader.PID != pid || !m.Leader.Alive() {
			t.Errorf("%s is %+v, leader %d, want %+v, leader %d", name, *m, m.Leader.PID, want, pid)
		}
		_ = m.Close()
	}
	// An alias.
	m, err := r.Resolve(bounded(t), "dbus-org.freedesktop.login1")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Name != "systemd-logind.service" {
		t.Errorf("the alias is %q", m.Name)
	}
}

func TestRefusedServices(t *testing.T) {
	must(t, "systemd-run", "--quiet", "--unit=test-done.service", "--property=Type=oneshot",
		"--property=RemainAfterExit=yes", "true")
	t.Cleanup(func() { must(t, "systemctl", "stop", "test-done.service") })
	r := newServices(t)
	for _, c := range []struct {
		name string
		code fail.Code
		hint string
	}{
		{"test-none", fail.NoSuchMachine, "list-units"},
		{"getty@", fail.NoSuchMachine, ""},
		{"no such", fail.NoSuchMachine, ""},
		{"..", fail.NoSuchMachine, ""},
		{strings.Repeat("x", 300), fail.NoSuchMachine, ""},
		{"dbus.socket", fail.NotAContainer, "pid:N"},
		{"init.scope", fail.NotAContainer, "pid:N"},
		{"test-done", fail.NotAContainer, "pid:N"},
		{"systemd-tmpfiles-clean", fail.NotRunning, "systemctl start systemd-tmpfiles-clean.service"},
	} {
		m, err := r.Resolve(bounded(t), c.name)
		if err == nil {
			_ = m.Close()
		}
		if !fail.Is(err, c.code) || !strings.Contains(fail.From(err).Hint, c.hint) {
			t.Errorf("%.30s: %v (hint: %s), want %s", c.name, err, fail.From(err).Hint, c.code)
		}
	}
}

func TestListServices(t *testing.T) {
	startService(t, "test-tmp.service", sleep, "PrivateTmp=yes")
	pid := startService(t, "test-root.service", []string{"/usr/bin/slim"}, "RootDirectory=/var/lib/machines/slim",
		"MountAPIVFS=yes", "PrivateNetwork=yes")
	list, err := newServices(t).List(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	want := machine.Info{Kind: "unit", Name: "test-root.service", Class: "service", Service: "systemd", Leader: pid}
	if !slices.Contains(list, want) || slices.ContainsFunc(list, func(i machine.Info) bool { return i.Name == "test-tmp.service" }) {
		t.Errorf("listed %+v", list)
	}
}

// Services restart while they are resolved: what is found is always the service's own process.
func TestResolveWhileServiceRestarts(t *testing.T) {
	startService(t, "test-restarts.service", sleep, "PrivateTmp=yes", "Restart=always", "RestartSec=0", "StartLimitBurst=1000")
	r := newServices(t)
	pids := map[int]bool{}
	for deadline := time.Now().Add(patience); len(pids) < 30; {
		m, err := r.Resolve(bounded(t), "test-restarts")
		if time.Now().After(deadline) {
			t.Fatal("it does not restart")
		}
		if fail.Is(err, fail.NotRunning) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", m.Leader.PID))
		if m.Leader.Alive() && (err != nil || !strings.Contains(string(cgroup), "/test-restarts.service")) {
			t.Errorf("process %d is in %s, %v", m.Leader.PID, cgroup, err)
		}
		pids[m.Leader.PID] = true
		_ = unix.PidfdSendSignal(int(m.Leader.File.Fd()), unix.SIGKILL, nil, 0) // it may have ended
		_ = m.Close()
	}
}

func TestResolveOverPrivateSocket(t *testing.T) {
	pid := startService(t, "test-svc.service", sleep, "PrivateTmp=yes")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/no-such-bus")
	m, err := newServices(t).Resolve(bounded(t), "test-svc")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Leader.PID != pid {
		t.Errorf("process %d, want %d", m.Leader.PID, pid)
	}
}

func TestResolveServiceLeaksNoDescriptors(t *testing.T) {
	startService(t, "test-svc.service", sleep)
	r := newServices(t)
	leaksNothing(t, 100, func() {
		m, err := r.Resolve(bounded(t), "test-svc")
		if err != nil {
			t.Fatal(err)
		}
		_ = m.Close()
		if m, err := r.Resolve(bounded(t), "test-none"); err == nil {
			_ = m.Close()
			t.Fatal("resolved what is not there")
		}
	})
}

// leaksNothing calls a function many times, and waits until no descriptors are left: a connection is closed in a
// goroutine of its own.
func leaksNothing(t *testing.T, times int, once func()) {
	t.Helper()
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	once()
	before := count()
	for range times {
		once()
	}
	for deadline := time.Now().Add(patience); count() > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", count(), before)
		}
	}
}

// sandboxes are services of kinds that one meets.
var sandboxes = []struct {
	name       string
	command    []string
	properties []string
	uid        bool // it runs as somebody of its own
}{
	{"plain", sleep, nil, false},
	{"tmp", sleep, []string{"PrivateTmp=yes"}, false},
	{"root", []string{"/usr/bin/slim"}, []string{"RootDirectory=/var/lib/machines/slim", "MountAPIVFS=yes", "PrivateNetwork=yes"}, false},
	{"dynamic", sleep, []string{"DynamicUser=yes", "StateDirectory=test-dynamic"}, true},
	{"users", sleep, []string{"PrivateUsers=yes", "PrivateTmp=yes", "User=alice"}, true},
	{"hardened", sleep, []string{
		"DynamicUser=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateDevices=yes", "PrivateNetwork=yes",
		"ProtectProc=invisible", "ProcSubset=pid", "ProtectKernelTunables=yes", "ProtectControlGroups=yes", "ProtectHostname=yes",
		"NoNewPrivileges=yes", "SystemCallFilter=@system-service", "RestrictAddressFamilies=AF_UNIX", "CapabilityBoundingSet=",
		"MemoryDenyWriteExecute=yes", "LockPersonality=yes", "RestrictNamespaces=yes", "UMask=0077",
		"InaccessiblePaths=/usr/bin/vim.tiny /opt",
	}, true},
}

func TestAttachToService(t *testing.T) {
	for _, s := range sandboxes {
		t.Run(s.name, func(t *testing.T) {
			unit := "test-" + s.name + ".service"
			pid := startService(t, unit, s.command, s.properties...)
			ref := "unit:test-" + s.name
			for _, ns := range []string{"cgroup", "ipc", "net", "pid", "time", "user", "uts"} {
				want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
				if err != nil {
					t.Fatal(err)
				}
				if got := must(t, "cntr-attach", ref, "readlink", "/proc/self/ns/"+ns); got != want {
					t.Errorf("%s namespace %s, want %s", ns, got, want)
				}
			}
			if got := must(t, "cntr-attach", ref, "id", "-u"); got != "0" {
				t.Errorf("uid %s", got)
			}
			if o := run(t, "cntr-attach", ref, "sh", "-c", "exit 7"); o.code != 7 {
				t.Errorf("exit status %d: %s", o.code, o.stderr)
			}
			// What the service sees: a file in its own /tmp.
			file := fmt.Sprintf("/proc/%d/root/tmp/test-of-the-service", pid)
			if s.name != "root" {
				if err := os.WriteFile(file, []byte(s.name), 0o644); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.Remove(file) })
				if got := must(t, "cntr-attach", ref, "cat", "/tmp/test-of-the-service"); got != s.name {
					t.Errorf("/tmp has %q", got)
				}
				if got := must(t, "cntr-attach", ref, "cat", "/var/lib/cntr/tmp/test-of-the-service"); got != s.name {
					t.Errorf("/var/lib/cntr/tmp has %q", got)
				}
			}
			trace := must(t, "cntr-attach", ref, "--", "gdb", "-p", strconv.Itoa(pid), "-batch", "-ex", "info proc")
			if !strings.Contains(trace, "process "+strconv.Itoa(pid)) {
				t.Errorf("gdb: %s", trace)
			}
		})
	}
}

func TestBacktraceInAServiceWithItsOwnRoot(t *testing.T) {
	pid := startService(t, "test-root.service", []string{"/usr/bin/slim"}, "RootDirectory=/var/lib/machines/slim",
		"MountAPIVFS=yes", "PrivateNetwork=yes")
	trace := must(t, "cntr-attach", "unit:test-root", "--", "gdb", "-p", strconv.Itoa(pid), "-batch", "-ex", "bt")
	for _, want := range []string{"wait_for_work (server=", "/usr/src/slim/slim.c:", "in main ()"} {
		if !strings.Contains(trace, want) {
			t.Errorf("gdb's backtrace lacks %q:\n%s", want, trace)
		}
	}
	if got := must(t, "cntr-attach", "unit:test-root", "ls", "/var/lib/cntr/usr/bin"); got != "slim" {
		t.Errorf("the service's own programs are %q", got)
	}
}

// A service has no pid namespace whose end would end the session's processes.
func TestSessionEndsWithItsService(t *testing.T) {
	for _, s := range sandboxes {
		unit := "test-" + s.name + ".service"
		startService(t, unit, s.command, s.properties...)
		cmd := exec.Command("cntr-attach", "unit:"+unit, "sh", "-c", "setsid sleep 1000 & echo ready; exec sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready := make([]byte, len("ready\n"))
		if _, err := out.Read(ready); err != nil || string(ready) != "ready\n" {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("%s: %q, %v, %s", unit, ready, err, &stderr)
		}
		scope := must(t, "sh", "-c", "systemctl list-units --plain --no-legend 'cntr-test*.scope' | cut -d' ' -f1")
		var held []*machine.Leader
		for _, pid := range strings.Fields(must(t, "cat", "/sys/fs/cgroup"+must(t, "systemctl", "show", "--property=ControlGroup", "--value", scope)+"/cgroup.procs")) {
			n, _ := strconv.Atoi(pid)
			if l, err := machine.OpenLeader(n); err == nil {
				held = append(held, l)
			}
		}
		must(t, "systemctl", "stop", unit)
		for _, l := range held {
			if !l.Wait(10 * time.Second) {
				t.Errorf("%s: process %d of the session goes on", unit, l.PID)
			}
			_ = l.Close()
		}
		if len(held) < 3 {
			t.Errorf("%s: the session had %d processes", unit, len(held))
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the session goes on", unit)
			_ = cmd.Process.Kill()
		}
		if cmd.ProcessState.ExitCode() == 0 {
			t.Errorf("%s: exit status 0: %s", unit, &stderr)
		}
	}
}

func BenchmarkServices(b *testing.B) {
	s := &Service{}
	defer s.Close()
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.List(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("resolve", func(b *testing.B) {
		for b.Loop() {
			m, err := s.Resolve(b.Context(), "dbus")
			if err != nil {
				b.Fatal(err)
			}
			_ = m.Close()
		}
	})
}
