//go:build integration

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

const (
	unit     = "cntr-attachd.service"
	binary   = "/usr/lib/cntr-attach/cntr-attachd"
	patience = 30 * time.Second // bounds every wait of a test
)

func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// try runs a command and returns its output and whether it succeeded.
func try(t testing.TB, args ...string) (string, bool) {
	t.Helper()
	out, err := exec.CommandContext(bounded(t), args[0], args[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v", args, err)
	}
	return strings.TrimSpace(string(out)), err == nil
}

func must(t testing.TB, args ...string) string {
	t.Helper()
	out, ok := try(t, args...)
	if !ok {
		t.Fatalf("%q: %s", args, out)
	}
	return out
}

// show returns a property of the service's unit.
func show(t testing.TB, property string) string {
	t.Helper()
	return must(t, "systemctl", "show", "--property="+property, "--value", unit)
}

// stop stops the service. Sessions go on.
func stop(t testing.TB) {
	t.Helper()
	must(t, "systemctl", "stop", unit)
}

// serviceProcess holds on to the service's process. It is started if it does not run.
func serviceProcess(t testing.TB) *machine.Leader {
	t.Helper()
	must(t, "systemctl", "start", unit)
	return process(t, show(t, "MainPID"))
}

// process holds on to a process until the test ends.
func process(t testing.TB, id string) *machine.Leader {
	t.Helper()
	pid, err := strconv.Atoi(id)
	if err != nil {
		t.Fatal(err)
	}
	p, err := machine.OpenLeader(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// configure changes the service's command line for one test.
func configure(t *testing.T, args ...string) {
	t.Helper()
	override(t, "ExecStart=", "ExecStart="+binary+" "+strings.Join(args, " "))
}

// override changes settings of the service for one test.
func override(t *testing.T, settings ...string) {
	t.Helper()
	dir := "/run/systemd/system/" + unit + ".d"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Started more often than anybody would by hand, it must not run into the limit on starts.
	text := "[Unit]\nStartLimitIntervalSec=0\n[Service]\n" + strings.Join(settings, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "test.conf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "daemon-reload")
	stop(t)
	t.Cleanup(func() {
		_ = os.RemoveAll(dir)
		must(t, "systemctl", "daemon-reload")
		stop(t)
	})
}

func connect(t testing.TB) *dbus.Client {
	t.Helper()
	c, err := dbus.Connect(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// sleeper is a session that goes on until its stdin ends.
type sleeper struct {
	*dbus.Attached
	stdin *os.File
}

// attach starts "cat" in a machine.
func attach(t testing.TB, c *dbus.Client, name string) *sleeper {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a, err := c.Attach(bounded(t), name, dbus.AttachOptions{Command: []string{"cat"}, Stdin: r})
	if err != nil {
		t.Fatal(err)
	}
	s := &sleeper{a, w}
	t.Cleanup(func() {
		s.finish(t) // again, it returns at once
		_ = a.Status.Close()
	})
	return s
}

// finish ends the session's stdin, and returns how the session ended.
func (s *sleeper) finish(t testing.TB) status.Status {
	t.Helper()
	_ = s.stdin.Close()
	if err := s.Status.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return status.Read(s.Status)
}

// catSession runs a command line of cntr-attach that starts cat in a machine, and waits until it does. What is returned
// ends it, as does the end of the test.
func catSession(t *testing.T, args ...string) (end func()) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = stdin.Close(); _ = cmd.Wait() })
	t.Cleanup(end)
	if _, err := stdin.Write([]byte("up\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q says %q, %v", args, line, err)
	}
	return end
}

func sessionIDs(t testing.TB, c *dbus.Client) map[string]dbus.SessionInfo {
	t.Helper()
	list, err := c.ListSessions(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]dbus.SessionInfo{}
	for _, s := range list {
		ids[s.ID] = s
	}
	return ids
}

// awaitNoSession waits until the service knows of no session.
func awaitNoSession(t testing.TB, c *dbus.Client) {
	t.Helper()
	for deadline := time.Now().Add(patience); len(sessionIDs(t, c)) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("sessions that do not end: %v", sessionIDs(t, c))
		}
	}
}

// descriptors returns how many descriptors a process has.
func descriptors(t testing.TB, p *machine.Leader) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// settledDescriptors returns how many descriptors the service has when a process waits for the next session.
func settledDescriptors(t testing.TB, p *machine.Leader) int {
	t.Helper()
	await(t, "a process that waits for the next session", func() bool {
		_, waits := try(t, "pgrep", "--parent", strconv.Itoa(p.PID), "--exact", "cntr-waiting")
		return waits
	})
	return descriptors(t, p)
}

// awaitDescriptors waits until a process has no more descriptors than before. The service closes what
// came with a call after it has answered.
func awaitDescriptors(t testing.TB, p *machine.Leader, before int) {
	t.Helper()
	for deadline := time.Now().Add(patience); descriptors(t, p) > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", descriptors(t, p), before)
		}
	}
}

func TestCallStartsService(t *testing.T) {
	stop(t)
	out := must(t, "busctl", "call", "org.cntr.Attach1", "/org/cntr/Attach1", "org.cntr.Attach1.Manager", "ListMachines")
	for _, name := range []string{"deb", "debu", "slim"} {
		if !strings.Contains(out, fmt.Sprintf("%q \"nspawn\" \"container\" \"systemd-nspawn\"", name)) {
			t.Errorf("%s is missing in %s", name, out)
		}
	}
	if state := show(t, "ActiveState"); state != "active" {
		t.Errorf("the service is %s", state)
	}
	if status := show(t, "StatusText"); status != "No sessions" {
		t.Errorf("its status is %q", status)
	}
}

// busctl is a client that we did not write.
func TestIntrospectionByBusctl(t *testing.T) {
	out := must(t, "busctl", "introspect", "--no-legend", "org.cntr.Attach1", "/org/cntr/Attach1", "org.cntr.Attach1.Manager")
	for _, want := range []string{
		".Attach method sasa{sv} soha{sv} -",
		".GetSession method s o -",
		".ListMachines method - a(ssssu) -",
		".ListSessions method - a(sssasso) -",
		".TerminateSession method s - -",
		".SessionNew signal so - -",
		".SessionRemoved signal soa{sv} - -",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out), " ")+" ", want+" ") {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestAnybodyMayAskWhatTheInterfaceIs(t *testing.T) {
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
	for _, call := range [][]string{
		{"org.freedesktop.DBus.Peer", "Ping"},
		{"org.freedesktop.DBus.Introspectable", "Introspect"},
	} {
		must(t, slices.Concat(nobody, []string{"busctl", "call", "org.cntr.Attach1", "/org/cntr/Attach1"}, call)...)
	}
	// What sessions there are is not told by introspection either.
	s := attach(t, connect(t), "slim")
	out := must(t, append(nobody, "busctl", "call", "org.cntr.Attach1", "/org/cntr/Attach1/session",
		"org.freedesktop.DBus.Introspectable", "Introspect")...)
	if strings.Contains(out, s.ID) {
		t.Errorf("nobody is told of session %s", s.ID)
	}
}

func TestErrorNames(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"Attach", "sasa{sv}", "slin", "1", "true", "0"}, "org.cntr.Attach1.NoSuchMachine"},
		{[]string{"Attach", "sasa{sv}", "slim", "0", "0"}, "org.freedesktop.DBus.Error.InvalidArgs"},
		{[]string{"Attach", "sasa{sv}", "slim", "1", "true", "1", "colour", "s", "red"}, "org.freedesktop.DBus.Error.InvalidArgs"},
		{[]string{"Attach", "sasa{sv}", ".host", "1", "true", "0"}, "org.cntr.Attach1.NotAContainer"},
		{[]string{"Attach", "sasa{sv}", "slim", "1", "no-such-command", "0"}, "org.cntr.Attach1.CommandNotFound"},
		{[]string{"GetSession", "s", "0"}, "org.cntr.Attach1.NoSuchSession"},
	} {
		// busctl call shows no names of errors, its monitor does.
		monitor := exec.Command("busctl", "monitor", "org.cntr.Attach1")
		got := watchError(t, monitor, func() {
			args := append([]string{"busctl", "call", "org.cntr.Attach1", "/org/cntr/Attach1", "org.cntr.Attach1.Manager"}, c.args...)
			if out, ok := try(t, args...); ok {
				t.Errorf("%q: %s", c.args, out)
			}
		})
		if !strings.Contains(got, "ErrorName="+c.want+" ") {
			t.Errorf("%q: %s, want %s", c.args, got, c.want)
		}
	}
	_, err := connect(t).Attach(bounded(t), "slin", dbus.AttachOptions{Command: []string{"true"}})
	if !fail.Is(err, fail.NoSuchMachine) || fail.From(err).Hint != "did you mean slim?" {
		t.Errorf("%v (hint %q)", err, fail.From(err).Hint)
	}
}

// watchError returns the first error that a monitor of the bus shows while call runs.
func watchError(t *testing.T, monitor *exec.Cmd, call func()) string {
	t.Helper()
	stdout, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := monitor.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(patience, func() { _ = monitor.Process.Kill() })
	defer func() { stop.Stop(); _ = monitor.Process.Kill(); _ = monitor.Wait() }()
	// It says "Monitoring bus message stream." when it does.
	if _, err := bufio.NewReader(stderr).ReadString('\n'); err != nil {
		t.Fatalf("the monitor does not start: %v", err)
	}
	call()
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), "ErrorName=") {
			return lines.Text()
		}
	}
	t.Fatal("the monitor shows no error")
	return ""
}

func TestBusRefusesDescriptorsElsewhere(t *testing.T) {
	// --fd is busctl's only way to send any; a call with "h" in it does the same.
	out, ok := try(t, "sh", "-c", "exec 3</dev/null; busctl call org.cntr.Attach1 /org/cntr/Attach1 org.cntr.Attach1.Manager GetSession h 3")
	if ok || !strings.Contains(out, "Access denied") && !strings.Contains(out, "rejected") {
		t.Errorf("GetSession with a descriptor: %s", out)
	}
}

func TestRefusedCallsLeakNoDescriptors(t *testing.T) {
	c := connect(t)
	d := serviceProcess(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	refused := func(c *dbus.Client) {
		for _, o := range []struct {
			name string
			dbus.AttachOptions
			want fail.Code
		}{
			{"none", dbus.AttachOptions{Stdin: r, Stdout: w, Stderr: w}, fail.NoSuchMachine},
			{"slim", dbus.AttachOptions{Stdin: w}, fail.InvalidArgument},
			{"slim", dbus.AttachOptions{Stdin: null}, fail.InvalidArgument},
			{"slim", dbus.AttachOptions{Stdin: r, Stdout: w, Terminal: true}, fail.InvalidArgument},
		} {
			o.Command = []string{"true"}
			if _, err := c.Attach(bounded(t), o.name, o.AttachOptions); !fail.Is(err, o.want) {
				t.Errorf("%v, want %s", err, o.want)
			}
		}
	}
	refused(c)
	before, memory := settledDescriptors(t, d), memoryOf(t, d.PID)
	calls := 1600 // $CNTR_REFUSED, by hand
	if s := os.Getenv("CNTR_REFUSED"); s != "" {
		if calls, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		c := connect(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; n < calls/16 && !t.Failed(); n++ {
				refused(c)
			}
		}()
	}
	wg.Wait()
	awaitDescriptors(t, d, before)
	after := memoryOf(t, d.PID)
	t.Logf("%.1f MiB of memory before, %.1f after", mib(memory.private), mib(after.private))
	if after.private > memory.private+(16<<20) {
		t.Errorf("the service has grown from %.1f to %.1f MiB", mib(memory.private), mib(after.private))
	}
	if !d.Alive() {
		t.Error("the service was restarted meanwhile")
	}
}

func TestSessionsLeakNoDescriptors(t *testing.T) {
	c := connect(t)
	d := serviceProcess(t)
	once := func() {
		if end := attach(t, c, "slim").finish(t); end.ExitCode() != 0 {
			t.Fatalf("%+v", end)
		}
	}
	once()
	awaitNoSession(t, c)
	before := settledDescriptors(t, d)
	for range 20 {
		once()
	}
	awaitNoSession(t, c)
	awaitDescriptors(t, d, before)
}

func TestSessionOnTheBus(t *testing.T) {
	c := connect(t)
	s := attach(t, c, "debu")
	info, ok := sessionIDs(t, c)[s.ID]
	if !ok || info.Machine != "nspawn:debu" || strings.Join(info.Command, " ") != "cat" ||
		info.Scope != "cntr-debu-"+s.ID+".scope" || info.Path != godbus.ObjectPath("/org/cntr/Attach1/session/"+s.ID) {
		t.Errorf("%+v", info)
	}
	get := func(name string) string {
		return must(t, "busctl", "get-property", "org.cntr.Attach1", string(info.Path), "org.cntr.Attach1.Session", name)
	}
	for name, want := range map[string]string{
		"Id": `s "` + s.ID + `"`, "Machine": `s "nspawn:debu"`, "Class": `s "container"`,
		"Service": `s "systemd-nspawn"`, "Command": `as 1 "cat"`, "Writable": "b false", "State": `s "running"`,
		"Leader": "u " + must(t, "machinectl", "show", "--property=Leader", "--value", "debu"),
	} {
		if got := get(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if out := must(t, "busctl", "tree", "org.cntr.Attach1"); !strings.Contains(out, string(info.Path)) {
		t.Errorf("the session is not in the tree:\n%s", out)
	}
	if err := c.TerminateSession(bounded(t), s.ID); err != nil {
		t.Fatal(err)
	}
	if end := s.finish(t); !end.Terminated {
		t.Errorf("it ended with %+v", end)
	}
	if _, there := sessionIDs(t, c)[s.ID]; there {
		t.Error("it is still listed")
	}
	if err := c.TerminateSession(bounded(t), s.ID); !fail.Is(err, fail.NoSuchSession) {
		t.Errorf("terminated again: %v", err)
	}
}

// A client that goes away, whatever its command makes of that, leaves no session.
func TestAbandonedSessionEnds(t *testing.T) {
	c := connect(t)
	for range 5 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Attach(bounded(t), "slim", dbus.AttachOptions{Command: []string{"cat"}, Stdin: r})
		_ = r.Close()
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Status.Close()
		_ = w.Close()
	}
	awaitNoSession(t, c)
}

// Whatever becomes of the service, its sessions go on, their clients learn of their ends, and the next
// service knows them.
func TestSessionSurvivesService(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *machine.Leader){
		"killed": func(t *testing.T, d *machine.Leader) {
			if err := unix.PidfdSendSignal(int(d.File.Fd()), unix.SIGKILL, nil, 0); err != nil {
				t.Fatal(err)
			}
			if !d.Wait(patience) {
				t.Fatal("it does not end")
			}
		},
		"stopped":   func(t *testing.T, _ *machine.Leader) { stop(t) },
		"restarted": func(t *testing.T, _ *machine.Leader) { must(t, "systemctl", "restart", unit) },
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t)
			s := attach(t, c, "slim")
			d := serviceProcess(t)
			end(t, d)
			if d.Alive() {
				t.Fatal("the service is still the same")
			}
			if _, there := sessionIDs(t, c)[s.ID]; !there {
				t.Error("the new service does not know the session")
			}
			if now := serviceProcess(t); now.PID == d.PID {
				t.Error("there is no new service")
			}
			if got := s.finish(t); got.ExitCode() != 0 || got.Error != nil {
				t.Errorf("the session ended with %+v", got)
			}
		})
	}
}

func TestIdleServiceExits(t *testing.T) {
	configure(t, "--idle-timeout=200ms")
	c := connect(t)
	s := attach(t, c, "slim")
	d := serviceProcess(t)
	if d.Wait(time.Second) {
		t.Fatal("the service ended with a session left")
	}
	s.finish(t)
	if !d.Wait(patience) {
		t.Fatal("the service does not end")
	}
	if result := show(t, "Result"); result != "success" {
		t.Errorf("it ended with %s", result)
	}
}

// Calls come in at every moment of the service's end. None is lost.
func TestNoCallIsLostAtIdleExit(t *testing.T) {
	configure(t, "--idle-timeout=20ms")
	// Of their own connections, in steps of their own, so that they meet every moment.
	var wg sync.WaitGroup
	var mu sync.Mutex
	calls := 0
	var enough atomic.Bool
	for i := range 3 {
		c := connect(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; !enough.Load(); n++ {
				if _, err := c.ListMachines(bounded(t)); err != nil {
					t.Errorf("call %d: %v", n, err)
					return
				}
				mu.Lock()
				calls++
				mu.Unlock()
				time.Sleep(time.Duration(15+(n*7+i*3)%40) * time.Millisecond) // the rhythm of a caller, not a wait
			}
		}()
	}
	begin := time.Now()
	since := fmt.Sprintf("--since=@%d", begin.Unix())
	starts := 0
	for starts < 15 && time.Since(begin) < time.Minute && !t.Failed() {
		starts = strings.Count(must(t, "journalctl", "--unit="+unit, since, "--output=cat"), "Started "+unit)
	}
	enough.Store(true)
	wg.Wait()
	if starts < 15 {
		t.Errorf("the service was started %d times only: the test meets no exit", starts)
	}
	t.Logf("%d calls, %d starts of the service", calls, starts)
}

// Attach at the moment of the exit starts a session all the same, and some service knows it.
func TestSessionsAcrossIdleExit(t *testing.T) {
	configure(t, "--idle-timeout=5ms")
	c := connect(t)
	for range 20 {
		s := attach(t, c, "slim")
		if _, there := sessionIDs(t, c)[s.ID]; !there {
			t.Errorf("session %s is not known", s.ID)
		}
		if end := s.finish(t); end.ExitCode() != 0 {
			t.Errorf("%+v", end)
		}
	}
}

func TestSecondServiceSaysWhy(t *testing.T) {
	d := serviceProcess(t)
	out, ok := try(t, binary)
	if ok || !strings.Contains(out, "another cntr-attachd runs") {
		t.Errorf("a second service: %s", out)
	}
	if !d.Alive() {
		t.Error("the first service ended")
	}
}

// Nor does the unit fight with a service that somebody has started by hand: it is not tried again and again.
func TestUnitLeavesAnotherServiceAlone(t *testing.T) {
	stop(t)
	byHand := exec.Command(binary, "--idle-timeout=0")
	if err := byHand.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = byHand.Process.Signal(unix.SIGTERM); _ = byHand.Wait() }()
	owner := func() string {
		out, _ := try(t, "busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetConnectionUnixProcessID", "s", "org.cntr.Attach1")
		return out
	}
	mine := fmt.Sprintf("u %d", byHand.Process.Pid)
	for deadline := time.Now().Add(patience); owner() != mine; {
		if time.Now().After(deadline) {
			t.Fatalf("the name is owned by %s, not %s", owner(), mine)
		}
	}
	if out, ok := try(t, "systemctl", "start", unit); ok {
		t.Errorf("the unit starts: %s", out)
	}
	if status, restarts := show(t, "ExecMainStatus"), show(t, "NRestarts"); status != "69" || restarts != "0" {
		t.Errorf("it ended with %s and was started %s times again", status, restarts)
	}
	must(t, "systemctl", "reset-failed", unit)
	if s := attach(t, connect(t), "slim"); s.finish(t).ExitCode() != 0 || owner() != mine {
		t.Error("the service that was there first does not go on")
	}
}

func TestUnitFilesAreValid(t *testing.T) {
	out, _ := try(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
		"/usr/lib/systemd/system/"+unit, "/usr/lib/systemd/system/cntr.slice")
	if out != "" {
		t.Error(out)
	}
}

func TestNoService(t *testing.T) {
	must(t, "systemctl", "mask", "--runtime", "--now", unit)
	t.Cleanup(func() { must(t, "systemctl", "unmask", "--runtime", unit) })
	_, err := connect(t).ListMachines(bounded(t))
	if !fail.Is(err, fail.NotSupported) || !strings.Contains(fail.From(err).Hint, "--direct") {
		t.Errorf("%v (hint %q)", err, fail.From(err).Hint)
	}
}

func BenchmarkListMachines(b *testing.B) {
	c, err := dbus.Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := c.ListMachines(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRefusedAttach(b *testing.B) {
	c, err := dbus.Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := c.Attach(b.Context(), "slim", dbus.AttachOptions{Command: []string{"true"}, WorkingDirectory: "x"}); err == nil {
			b.Fatal("not refused")
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	c, err := dbus.Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		a, err := c.Attach(b.Context(), "slim", dbus.AttachOptions{Command: []string{"true"}})
		if err != nil {
			b.Fatal(err)
		}
		if end := status.Read(a.Status); end.ExitCode() != 0 {
			b.Fatalf("%+v", end)
		}
		_ = a.Status.Close()
	}
}
