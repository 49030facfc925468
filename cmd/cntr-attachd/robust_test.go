//go:build integration

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// TestMain makes this program a service of another version, if it is started as one.
func TestMain(m *testing.M) {
	if v := os.Getenv("CNTR_ATTACHD_VERSION"); v != "" {
		version = v
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// await calls ok until it is true.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it does not come", what)
		}
	}
}

// A service that hangs is killed, and the one that is started in its place knows the sessions.
func TestHangingServiceIsReplaced(t *testing.T) {
	override(t, "WatchdogSec=1s")
	c := connect(t)
	s := attach(t, c, "slim")
	d := serviceProcess(t)
	if err := unix.PidfdSendSignal(int(d.File.Fd()), unix.SIGSTOP, nil, 0); err != nil {
		t.Fatal(err)
	}
	if !d.Wait(patience) {
		t.Fatal("nobody kills it")
	}
	await(t, "a new service", func() bool { return show(t, "NRestarts") == "1" && show(t, "ActiveState") == "active" })
	if status := show(t, "StatusText"); status != "1 session" {
		t.Errorf("the new service says %q", status)
	}
	if err := c.TerminateSession(bounded(t), s.ID); err != nil {
		t.Error(err)
	}
	if end := s.finish(t); !end.Terminated {
		t.Errorf("%+v", end)
	}
}

// The watchdog's own calls are no reason to stay, and a service that works is left alone.
func TestWatchdogDoesNotKeepTheService(t *testing.T) {
	override(t, "WatchdogSec=400ms", "ExecStart=", "ExecStart="+binary+" --idle-timeout=1s")
	d := serviceProcess(t)
	if !d.Wait(patience) {
		t.Fatal("the service does not end")
	}
	await(t, "its end", func() bool { return show(t, "ActiveState") == "inactive" })
	if result, restarts := show(t, "Result"), show(t, "NRestarts"); result != "success" || restarts != "0" {
		t.Errorf("it ended with %s, and was started %s times again", result, restarts)
	}
}

// Reloading takes up what has been started without the service.
func TestReload(t *testing.T) {
	d := serviceProcess(t)
	c := connect(t)
	awaitNoSession(t, c)
	end := catSession(t, "cntr-attach", "--direct", "slim", "cat")
	if status := show(t, "StatusText"); status != "No sessions" {
		t.Errorf("before, the status is %q", status)
	}
	must(t, "systemctl", "reload", unit)
	await(t, "the session that was started without it", func() bool { return show(t, "StatusText") == "1 session" })
	end()
	await(t, "its end", func() bool { return show(t, "StatusText") == "No sessions" })
	if !d.Alive() || show(t, "ActiveState") != "active" {
		t.Error("the service does not go on")
	}
}

// busSockets returns copies of a process's connections to the system bus, in the order in which they were made.
func busSockets(t *testing.T, p *machine.Leader) []int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	highest := 0
	for _, e := range list {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		highest = max(highest, n)
	}
	var sockets []int
	for n := 3; n <= highest; n++ {
		fd, err := unix.PidfdGetfd(int(p.File.Fd()), n, 0)
		if err != nil {
			continue // there is none of this number
		}
		peer, err := unix.Getpeername(fd)
		if name, ok := peer.(*unix.SockaddrUnix); err == nil && ok && name.Name == "/run/dbus/system_bus_socket" {
			t.Cleanup(func() { _ = unix.Close(fd) })
			sockets = append(sockets, fd)
			continue
		}
		_ = unix.Close(fd)
	}
	if len(sockets) < 2 {
		t.Fatalf("the service has %d connections to the bus", len(sockets))
	}
	return sockets
}

// A service that has lost the bus, or systemd, ends. A new one takes over.
func TestServiceThatLosesTheBusIsReplaced(t *testing.T) {
	override(t, "TasksMax=4096") // for its limit on starts
	for name, which := range map[string]func([]int) []int{
		"all connections": func(all []int) []int { return all },
		"systemd's":       func(all []int) []int { return all[:1] }, // the first that it makes
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t)
			s := attach(t, c, "slim")
			d := serviceProcess(t)
			for _, fd := range which(busSockets(t, d)) {
				if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
					t.Fatal(err)
				}
			}
			if !d.Wait(patience) {
				t.Fatal("it goes on without")
			}
			if _, there := sessionIDs(t, c)[s.ID]; !there {
				t.Error("the new service does not know the session")
			}
			if end := s.finish(t); end.ExitCode() != 0 {
				t.Errorf("%+v", end)
			}
		})
	}
}

// A service of another version knows and ends the sessions that this one has started, and the other way round.
func TestAnotherVersionTakesOver(t *testing.T) {
	c := connect(t)
	before := attach(t, c, "slim")
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	override(t, "Environment=CNTR_ATTACHD_VERSION=99.1-other", "ExecStart=", "ExecStart="+executable)
	version := func() string {
		return must(t, "busctl", "get-property", "org.cntr.Attach1", "/org/cntr/Attach1", "org.cntr.Attach1.Manager", "Version")
	}
	if got := version(); got != `s "99.1-other"` {
		t.Fatalf("the version is %s", got)
	}
	during := attach(t, c, "debu")
	known := sessionIDs(t, c)
	if info := known[before.ID]; info.Machine != "nspawn:slim" || info.Command[0] != "cat" || len(known) != 2 {
		t.Errorf("the other version knows %+v", known)
	}
	if err := c.TerminateSession(bounded(t), before.ID); err != nil {
		t.Error(err)
	}
	if end := before.finish(t); !end.Terminated {
		t.Errorf("the session of the version before ended with %+v", end)
	}
	override(t, "TasksMax=4096")
	if got := version(); got == `s "99.1-other"` {
		t.Fatalf("the version is still %s", got)
	}
	if err := c.TerminateSession(bounded(t), during.ID); err != nil {
		t.Error(err)
	}
	if end := during.finish(t); !end.Terminated {
		t.Errorf("the session of the other version ended with %+v", end)
	}
	awaitNoSession(t, c)
}

// machined may be restarted, or killed, at any moment: a call at that very moment has a clear error, all later ones work.
func TestMachinedRestarts(t *testing.T) {
	override(t, "TasksMax=4096")
	d := serviceProcess(t)
	must(t, "systemctl", "reset-failed", "systemd-machined")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		c := connect(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				// One of its own kind only: others would answer in its place that they do not know the name.
				a, err := c.Attach(bounded(t), "nspawn:slim", dbus.AttachOptions{Command: []string{"true"}})
				if err == nil {
					_ = a.Status.Close()
				} else if f := fail.From(err); f.Code != fail.NotSupported || !strings.Contains(f.Message, "machined") || f.Hint == "" {
					t.Errorf("while machined restarts: %v (%s, hint %q)", err, f.Code, f.Hint)
				}
			}
		}()
	}
	must(t, "systemctl", "restart", "systemd-machined")
	must(t, "systemctl", "kill", "--signal=SIGKILL", "systemd-machined")
	await(t, "the end of machined", func() bool {
		out, _ := try(t, "systemctl", "is-active", "systemd-machined")
		return out != "deactivating"
	})
	close(stop)
	wg.Wait()
	if s := attach(t, connect(t), "slim"); s.finish(t).ExitCode() != 0 || !d.Alive() {
		t.Error("afterwards it does not work")
	}
}

// systemd may refuse a scope, whatever the reason is. That is told, and nothing is left.
func TestScopesCannotBeMade(t *testing.T) {
	must(t, "systemctl", "mask", "--runtime", "cntr.slice")
	t.Cleanup(func() { must(t, "systemctl", "unmask", "--runtime", "cntr.slice") })
	must(t, "systemctl", "stop", "cntr.slice")
	c := connect(t)
	d := serviceProcess(t)
	once := func() {
		_, err := c.Attach(bounded(t), "slim", dbus.AttachOptions{Command: []string{"true"}})
		if f := fail.From(err); f == nil || f.Code != fail.NotSupported || !strings.Contains(f.Message, "masked") || !strings.Contains(f.Hint, "cntr.slice") {
			t.Fatalf("%v (hint %q)", err, fail.From(err).Hint)
		}
	}
	once()
	before := settledDescriptors(t, d)
	for range 10 {
		once()
	}
	awaitDescriptors(t, d, before)
	awaitNoSession(t, c)
	await(t, "the end of the session processes", func() bool {
		_, some := try(t, "pgrep", "--full", "^cntr-session")
		return !some
	})
	if out := must(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "cntr-*.scope"); out != "" {
		t.Errorf("left is %s", out)
	}
}

const questionRules = "/etc/polkit-1/rules.d/10-cntr-question.rules"

// question makes polkit ask, when alice is to be allowed something, a script that answers only when the test does: asked
// returns when the question has come up, and answer says yes.
func question(t *testing.T, action string) (asked, answer func()) {
	t.Helper()
	dir := "/run/cntr-test"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"asked", "answer"} {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("polkit.addRule(function(action, subject) {\n"+
		"if (subject.user == 'alice' && action.id == 'org.cntr.Attach1.%s') {\n"+
		"polkit.spawn(['sh', '-c', 'echo > %s/asked; read x < %s/answer']); return polkit.Result.YES; } });\n", action, dir, dir)
	if err := os.WriteFile(questionRules, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	restartPolkit(t)
	t.Cleanup(func() {
		_ = os.Remove(questionRules)
		restartPolkit(t)
	})
	// Open for both, so that neither opening nor closing is noticed at the other end.
	fifo := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	questions, answers := fifo("asked"), fifo("answer")
	asked = func() {
		t.Helper()
		if err := questions.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := questions.Read(make([]byte, 1)); err != nil {
			t.Fatalf("polkit is not asked: %v", err)
		}
	}
	answer = func() {
		t.Helper()
		if _, err := answers.WriteString("\n"); err != nil {
			t.Fatal(err)
		}
	}
	return asked, answer
}

// serviceMachine starts a service to attach to, and returns its name.
func serviceMachine(t *testing.T) (unit string) {
	t.Helper()
	unit = "cntr-test-machine.service"
	must(t, "systemd-run", "--quiet", "--collect", "--unit="+unit, "-p", "PrivateTmp=yes", "-p", "KillSignal=SIGKILL", "sleep", "1000")
	t.Cleanup(func() { try(t, "systemctl", "stop", unit) }) // it may be gone
	return unit
}

// What a question to polkit was about is looked up again after the answer (CVE-2020-1712): a yes for one machine is none
// for another that has taken its name.
func TestMachineReplacedDuringTheQuestion(t *testing.T) {
	unit := serviceMachine(t)
	asked, answer := question(t, "attach-privileged")
	for _, c := range []struct {
		name    string
		between func()
		want    string
	}{
		{"the same", func() {}, ""},
		{"another of the name", func() { must(t, "systemctl", "restart", unit) }, "was replaced by another one meanwhile"},
		{"gone", func() { must(t, "systemctl", "stop", unit) }, "unit:" + strings.TrimSuffix(unit, ".service")},
	} {
		args := alice("cntr-attach", "unit:"+strings.TrimSuffix(unit, ".service"), "echo", "here")
		cmd := exec.CommandContext(bounded(t), args[0], args[1:]...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		asked()
		c.between()
		answer()
		err := cmd.Wait()
		if c.want == "" && (err != nil || out.String() != "here\n") || c.want != "" && (err == nil || !strings.Contains(out.String(), c.want)) {
			t.Errorf("%s: %v, %s", c.name, err, &out)
		}
	}
}

func TestPolkitRestartsDuringTheQuestion(t *testing.T) {
	unit := serviceMachine(t)
	asked, _ := question(t, "attach-privileged")
	d := serviceProcess(t)
	args := alice("cntr-attach", "unit:"+strings.TrimSuffix(unit, ".service"), "true")
	cmd := exec.CommandContext(bounded(t), args[0], args[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	asked()
	must(t, "systemctl", "kill", "--signal=SIGKILL", "polkit")
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "polkit has gone away while it was asked") {
		t.Errorf("%v, %s", err, &out)
	}
	if !d.Alive() {
		t.Error("the service has ended")
	}
	awaitNoSession(t, connect(t))
}

// Each user has so many calls in flight; one more is refused, and others are not held up.
func TestLimitOnCallsInFlight(t *testing.T) {
	asked, _ := question(t, "inspect")
	serviceProcess(t)
	const most = 32
	answers := make(chan string, most+1)
	for range most + 1 {
		args := alice(manager("ListMachines")...)
		cmd := exec.CommandContext(bounded(t), args[0], args[1:]...)
		go func() {
			out, _ := cmd.CombinedOutput()
			answers <- string(out)
		}()
	}
	asked()
	if first := <-answers; !strings.Contains(first, "LimitsExceeded") || !strings.Contains(first, "too many calls of user 1000 at a time (32)") {
		t.Errorf("the first answer is %s", first)
	}
	if _, err := connect(t).ListMachines(bounded(t)); err != nil {
		t.Errorf("root is held up: %v", err)
	}
	// What polkit has not been asked yet, a new one is.
	if err := os.Remove(questionRules); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "kill", "--signal=SIGKILL", "polkit")
	for range most {
		if one := <-answers; !strings.Contains(one, "polkit has gone away") && !strings.Contains(one, "authentication is required") {
			t.Errorf("an answer is %s", one)
		}
	}
}
