//go:build integration

package nspawn

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/bus"
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

func newResolver(t *testing.T) *Resolver {
	t.Helper()
	r := &Resolver{}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(bounded(t), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// show returns a property of a machine as machinectl tells it.
func show(t *testing.T, name, property string) string {
	t.Helper()
	return run(t, "machinectl", "show", "--property="+property, "--value", name)
}

// fake is a unit with a process that can be registered as a machine.
type fake struct {
	unit string
	pid  int
}

// startFake starts a process, in mounts of its own or in the host's.
func startFake(t *testing.T, unit string, ownMounts bool) fake {
	t.Helper()
	mounts := "no"
	if ownMounts {
		mounts = "yes"
	}
	// Type=exec: done when the program runs, and with it all that its unit asks for.
	run(t, "systemd-run", "--quiet", "--collect", "--unit="+unit, "--property=Type=exec",
		"--property=PrivateMounts="+mounts, "sleep", "infinity")
	t.Cleanup(func() { _ = exec.Command("systemctl", "kill", "--signal=KILL", unit).Run() })
	pid, err := strconv.Atoi(run(t, "systemctl", "show", "--property=MainPID", "--value", unit))
	if err != nil || pid == 0 {
		t.Fatalf("%s has process %d, %v", unit, pid, err)
	}
	return fake{unit, pid}
}

// register makes machined know a machine.
func register(t *testing.T, name, class string, leader int) {
	t.Helper()
	conn, err := bus.Connect(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = call(bounded(t), conn, managerPath, manager+".RegisterMachine",
		name, []byte{}, "test", class, uint32(leader), "").Err
	if err != nil {
		t.Fatalf("registering %s: %v", name, err)
	}
}

// end ends a fake, and waits until it has ended.
func (f fake) end(t *testing.T) {
	t.Helper()
	leader, err := machine.OpenLeader(f.pid)
	if fail.Is(err, fail.NotRunning) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	if err := unix.PidfdSendSignal(int(leader.File.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if !leader.Wait(patience) {
		t.Fatalf("process %d does not end", f.pid)
	}
}

func TestResolveEachMachine(t *testing.T) {
	r := newResolver(t)
	for _, name := range []string{"deb", "debu", "slim"} {
		m, err := r.Resolve(bounded(t), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := machine.Machine{
			Kind: "nspawn", Name: name, Class: "container", Service: "systemd-nspawn",
			Unit: show(t, name, "Unit"), Root: show(t, name, "RootDirectory"), Leader: m.Leader,
		}
		if *m != want {
			t.Errorf("%s is %+v, want %+v", name, *m, want)
		}
		if pid := strconv.Itoa(m.Leader.PID); pid != show(t, name, "Leader") || !m.Leader.Alive() {
			t.Errorf("%s: leader %s, machinectl says %s", name, pid, show(t, name, "Leader"))
		}
		if m.Ref() != "nspawn:"+name {
			t.Errorf("%s: typed name %q", name, m.Ref())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestList(t *testing.T) {
	vm := startFake(t, "test-list-vm", true)
	register(t, "test-list-vm", "vm", vm.pid)
	list, err := newResolver(t).List(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range list {
		names = append(names, m.Name)
		if m.Kind != "nspawn" || m.Class != "container" || strconv.Itoa(m.Leader) != show(t, m.Name, "Leader") {
			t.Errorf("%+v", m)
		}
	}
	if got := strings.Join(names, " "); got != "deb debu slim" {
		t.Errorf("machines: %s", got)
	}
}

func TestRefusals(t *testing.T) {
	r := newResolver(t)
	vm := startFake(t, "test-vm", true)
	register(t, "test-vm", "vm", vm.pid)
	host := startFake(t, "test-host-mounts", false)
	register(t, "test-host-mounts", "container", host.pid)
	image := "test-image"
	if err := os.MkdirAll(filepath.Join("/var/lib/machines", image, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Join("/var/lib/machines", image)) })
	for _, c := range []struct {
		name string
		code fail.Code
		hint string
	}{
		{"test-vm", fail.NotAContainer, "containers"},
		{"test-host-mounts", fail.NotAContainer, "process of the host"},
		{".host", fail.NotAContainer, ""},
		{image, fail.NotRunning, "machinectl start " + image},
		{"no-such", fail.NoSuchMachine, "machinectl list"},
		{"no such", fail.NoSuchMachine, ""},
		{strings.Repeat("x", 300), fail.NoSuchMachine, ""},
		{"-", fail.NoSuchMachine, ""},
	} {
		m, err := r.Resolve(bounded(t), c.name)
		if err == nil {
			_ = m.Close()
		}
		if !fail.Is(err, c.code) || !strings.Contains(fail.From(err).Hint, c.hint) {
			t.Errorf("%.20s: %v (hint %q), want %s", c.name, err, fail.From(err).Hint, c.code)
		}
	}
}

// A container in mounts of its own is accepted, whoever has registered it.
func TestRegisteredContainer(t *testing.T) {
	f := startFake(t, "test-registered", true)
	register(t, "test-registered", "container", f.pid)
	m, err := newResolver(t).Resolve(bounded(t), "test-registered")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Leader.PID != f.pid || m.Unit != "test-registered.service" {
		t.Errorf("%+v", m)
	}
}

func TestGoneBetweenResolveAndUse(t *testing.T) {
	r := newResolver(t)
	f := startFake(t, "test-gone", true)
	register(t, "test-gone", "container", f.pid)
	m, err := r.Resolve(bounded(t), "test-gone")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f.end(t)
	if m.Leader.Alive() {
		t.Error("the leader is alive")
	}
	if m, err := r.Resolve(bounded(t), "test-gone"); err == nil {
		_ = m.Close()
		t.Error("resolved again")
	} else if !fail.Is(err, fail.NoSuchMachine) && !fail.Is(err, fail.NotRunning) {
		t.Error(err)
	}
}

// A process id that was used again: the pidfd that was opened by number is another process's.
func TestAnotherProcessIsNotTheLeader(t *testing.T) {
	conn, err := bus.Connect(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f := startFake(t, "test-reused", true)
	register(t, "test-reused", "container", f.pid)
	other := startFake(t, "test-other", true)
	leader, err := machine.OpenLeader(other.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	var path godbus.ObjectPath
	if err := call(bounded(t), conn, managerPath, manager+".GetMachine", "test-reused").Store(&path); err != nil {
		t.Fatal(err)
	}
	p, err := propertiesOf(bounded(t), conn, path)
	if err != nil {
		t.Fatal(err)
	}
	if p.LeaderPIDFDId == 0 {
		// As if machined had not noticed that its leader is gone: the number is the same, but the
		// process is in another unit.
		same := *leader
		if err := verify(bounded(t), conn, path, p, &same); !fail.Is(err, fail.NotRunning) {
			t.Errorf("in another unit: %v, want NotRunning", err)
		}
		// And as if it had: the number has changed.
		p.Leader = uint32(other.pid)
	}
	if err := verify(bounded(t), conn, path, p, leader); !fail.Is(err, fail.NotRunning) {
		t.Errorf("another process: %v, want NotRunning", err)
	}
}

// Machines come and go while they are resolved: what is found is always the machine's own process.
func TestResolveWhileMachinesEnd(t *testing.T) {
	r := newResolver(t)
	for i := range 20 {
		unit := fmt.Sprintf("test-churn-%d", i)
		f := startFake(t, unit, true)
		register(t, unit, "container", f.pid)
		found := 0
		for deadline := time.Now().Add(patience); ; {
			if found == i%5 {
				go func() { _ = unix.Kill(f.pid, unix.SIGKILL) }()
			}
			m, err := r.Resolve(bounded(t), unit)
			if fail.Is(err, fail.NoSuchMachine) || fail.Is(err, fail.NotRunning) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", unit, err)
			}
			found++
			if m.Leader.PID != f.pid {
				t.Errorf("%s: process %d, not %d", unit, m.Leader.PID, f.pid)
			}
			_ = m.Close()
			if time.Now().After(deadline) {
				t.Fatalf("%s is resolved after its end", unit)
			}
		}
		if found < i%5 {
			t.Errorf("%s was resolved %d times before it was ended", unit, found)
		}
	}
}

func TestNoMachined(t *testing.T) {
	run(t, "systemctl", "mask", "--runtime", "--now", "systemd-machined.service")
	t.Cleanup(func() {
		if err := exec.Command("systemctl", "unmask", "--runtime", "systemd-machined.service").Run(); err != nil {
			t.Error(err)
		}
	})
	r := newResolver(t)
	_, err := r.Resolve(bounded(t), "deb")
	if !fail.Is(err, fail.NotSupported) || !strings.Contains(fail.From(err).Hint, "systemd-machined") {
		t.Errorf("Resolve: %v", err)
	}
	_, err = r.List(bounded(t))
	if !fail.Is(err, fail.NotSupported) {
		t.Errorf("List: %v", err)
	}
}

// A resolver outlives a bus connection.
func TestConnectsAgain(t *testing.T) {
	r := newResolver(t)
	if _, err := r.List(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.List(bounded(t)); err != nil {
		t.Fatal(err)
	}
}

func TestResolveIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newResolver(t).Resolve(ctx, "deb"); err == nil {
		t.Error("resolved with a context that was cancelled")
	}
}

func TestResolveLeaksNoDescriptors(t *testing.T) {
	r := newResolver(t)
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	f := startFake(t, "test-leak", false)
	register(t, "test-leak", "container", f.pid)
	once := func() {
		m, err := r.Resolve(bounded(t), "deb")
		if err != nil {
			t.Fatal(err)
		}
		_ = m.Close()
		for _, name := range []string{"test-leak", "no-such"} {
			if _, err := r.Resolve(bounded(t), name); err == nil {
				t.Fatalf("%s was resolved", name)
			}
		}
	}
	once()
	before := count()
	for range 100 {
		once()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func BenchmarkResolve(b *testing.B) {
	r := &Resolver{}
	defer r.Close()
	for b.Loop() {
		m, err := r.Resolve(b.Context(), "deb")
		if err != nil {
			b.Fatal(err)
		}
		_ = m.Close()
	}
}
