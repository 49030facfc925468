//go:build integration

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func clearCloseOnExec(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0)
	return err
}

// waitForNoScopes waits until systemd has seen the end of every session.
func waitForNoScopes(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(runTimeout); len(scopes(t)) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("scopes are left: %q", scopes(t))
		}
	}
}

// daemon returns the service's process id, and 0 if it does not run.
func daemon(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(must(t, "systemctl", "show", "--property=MainPID", "--value", "cntr-attachd"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestSessionSurvivesTheDaemon(t *testing.T) {
	r := start(t, booted, "sh", "-c", "echo ready; read line; echo got $line; exit 7")
	r.line()
	service := daemon(t)
	if service == 0 {
		t.Fatal("the service does not run")
	}
	gone := hold(t, service)
	if err := unix.Kill(service, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone.end(t, 10*time.Second)
	if _, err := r.stdin.Write([]byte("this\n")); err != nil {
		t.Fatal(err)
	}
	if got := r.line(); got != "got this" {
		t.Errorf("got %q", got)
	}
	if code := r.exit(runTimeout); code != 7 {
		t.Errorf("exit status %d: %s", code, &r.stderr)
	}
}

func TestKilledSessionProcessLeavesNothing(t *testing.T) {
	for _, machine := range machines {
		for _, command := range []string{
			"echo ready; exec sleep 1000",
			// Children, a process in a session of its own, and one that is busy with the tools tree.
			"(setsid sleep 1000 &) ; sleep 1000 & (while :; do find /usr >/dev/null; done) & echo ready; wait",
		} {
			r := start(t, machine, "sh", "-c", command)
			r.line()
			scope := scopes(t)[0]
			pids := processes(t, scope)
			var inside []int
			for _, pid := range pids {
				if comm := readFile(t, fmt.Sprintf("/proc/%d/comm", pid)); !strings.HasPrefix(string(comm), "cntr-") {
					inside = append(inside, pid)
				}
			}
			command, all := hold(t, inside...), hold(t, pids...)
			if err := unix.Kill(sessionProcess(t, scope), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			command.end(t, 2*time.Second)
			// The reaper is the last to leave the mount namespace: in its exit the kernel shuts the file
			// system down, and waits for a turn of the writeback workers that all disks share.
			all.end(t, 10*time.Second)
			// The reaper has waited for them: in a machine whose first process does not, they would stay.
			for _, pid := range pids {
				status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				if strings.Contains(string(status), "\nState:\tZ") && !strings.Contains(string(status), "Name:\tcntr-") {
					t.Errorf("%s: a zombie is left:\n%s", machine, status)
				}
			}
			if code := r.exit(10 * time.Second); code != 125 || !strings.Contains(r.stderr.String(), "killed") {
				t.Errorf("%s: exit status %d, %s", machine, code, &r.stderr)
			}
			waitForNoScopes(t)
		}
	}
}

func TestKilledReaperEndsTheSession(t *testing.T) {
	r, scope := sleeper(t, booted)
	all := hold(t, processes(t, scope)...)
	for _, pid := range processes(t, scope) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // those after the reaper may have ended already
		if string(comm) == "cntr-reaper\n" {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	all.end(t, 5*time.Second)
	if code := r.exit(5 * time.Second); code != 125 {
		t.Errorf("exit status %d, %s", code, &r.stderr)
	}
}

func TestStoppedMachineEndsTheSession(t *testing.T) {
	for _, how := range []string{"terminate", "kill"} {
		// A new name each time: a killed systemd-nspawn leaves a mount behind that refuses the old one.
		machine := fmt.Sprintf("doomed%s%d", how, time.Now().UnixNano())
		stop := startMachine(t, machine)
		r, _ := sleeper(t, machine)
		stop(how)
		if code := r.exit(30 * time.Second); code != 125 ||
			!strings.Contains(r.stderr.String(), `machine "nspawn:`+machine+`" has stopped`) {
			t.Errorf("%s: exit status %d, %q", how, code, &r.stderr)
		}
	}
	waitForNoScopes(t)
}

// startMachine starts a machine that the test may stop.
func startMachine(t *testing.T, name string) (stop func(how string)) {
	t.Helper()
	unit := name + ".service"
	must(t, "systemd-run", "--quiet", "--collect", "--unit="+name, "--property=Delegate=yes", "--property=Type=notify",
		"--property=KillMode=mixed",
		"systemd-nspawn", "--quiet", "--keep-unit", "--private-network", "--read-only", "--notify-ready=no",
		"--machine="+name, "--directory="+must(t, "machinectl", "show", "--property=RootDirectory", "--value", slim), "/usr/bin/slim")
	t.Cleanup(func() { runCommand(t, nil, "systemctl", "stop", unit) })
	return func(how string) {
		if how == "kill" {
			must(t, "systemctl", "kill", "--signal=KILL", unit)
		} else {
			must(t, "machinectl", "terminate", name)
		}
	}
}

func TestScopeShowsAndStopsTheSession(t *testing.T) {
	r, scope := sleeper(t, booted)
	status := must(t, "systemctl", "status", "--no-pager", "--full", scope)
	for _, want := range []string{"cntr-session", "sleep 1000", "cntr.slice", "Session in nspawn:deb as root"} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in systemctl status:\n%s", want, status)
		}
	}
	all := hold(t, processes(t, scope)...)
	must(t, "systemctl", "stop", scope)
	all.end(t, 5*time.Second)
	if code := r.exit(5 * time.Second); code != 128+int(syscall.SIGTERM) ||
		!strings.Contains(r.stderr.String(), "terminated") {
		t.Errorf("exit status %d, %s", code, &r.stderr)
	}
	waitForNoScopes(t)
}

func TestKilledClientEndsTheSession(t *testing.T) {
	r, scope := sleeper(t, booted)
	all := hold(t, processes(t, scope)...)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	all.end(t, 5*time.Second)
	waitForNoScopes(t)
}

func TestWrongUse(t *testing.T) {
	for _, test := range []struct {
		what    string
		command []string
		code    int
		stderr  []string
	}{
		{
			"a name that is almost right",
			[]string{"cntr-attach", "slmi", "true"},
			125,
			[]string{`no machine is called "slmi"`, "hint: did you mean slim?"},
		},
		{
			"an unknown name",
			[]string{"cntr-attach", "xylophone", "true"},
			125,
			[]string{`no machine is called "xylophone"`, "hint: running: deb, debu, slim"},
		},
		{
			"a user with a name that no command line has room for",
			[]string{"cntr-attach", "--user=" + strings.Repeat("x", 20000), "slim", "true"},
			125,
			[]string{`the machine has no user "xxx`},
		},
		{
			"an unknown kind",
			[]string{"cntr-attach", "vm:slim", "true"},
			125,
			[]string{`no kind of machine is called "vm"`, "hint: the kinds are"},
		},
		{
			"a stopped machine",
			[]string{"cntr-attach", "stopped", "true"},
			125,
			[]string{`"stopped"`, "not running", "hint: ", "machinectl start stopped"},
		},
		{
			"a command that does not exist",
			[]string{"cntr-attach", slim, "no-such-command"},
			127,
			[]string{`command not found: "no-such-command"`, "hint: "},
		},
		{
			"not root",
			[]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cntr-attach", slim, "true"},
			125,
			[]string{"root", "hint: "},
		},
		{"not root, without the service", []string{
			"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
			"cntr-attach", "--direct", slim, "true",
		}, 125, []string{"--direct is for root only", "hint: use sudo"}},
		{"no bus, not root", []string{
			"env", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/no/such/bus", "setpriv", "--reuid=65534",
			"--regid=65534", "--clear-groups", "cntr-attach", slim, "true",
		}, 125, []string{"bus", "hint: "}},
		{"no FUSE", []string{
			"unshare", "-m", "sh", "-c",
			"mount --bind /dev/null /dev/fuse && exec cntr-attach --direct slim true",
		}, 125, []string{"FUSE", "hint: "}},
		{"no process", []string{"cntr-attach", "pid:99999999", "true"}, 125, []string{`pid:99999999`}},
		{"nothing", []string{"cntr-attach"}, 125, []string{"which machine?", "hint: cntrctl list"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			if test.what == "a stopped machine" {
				must(t, "mkdir", "-p", "/var/lib/machines/stopped/usr")
				t.Cleanup(func() { must(t, "rm", "-r", "/var/lib/machines/stopped") })
			}
			o := runCommand(t, nil, test.command...)
			if o.code != test.code {
				t.Errorf("exit status %d, want %d", o.code, test.code)
			}
			for _, want := range test.stderr {
				if !strings.Contains(o.stderr, want) {
					t.Errorf("no %q in %q", want, o.stderr)
				}
			}
			if lines := strings.Count(o.stderr, "\n"); lines > 2 || strings.Contains(o.stderr, "goroutine") {
				t.Errorf("more than a line and a hint:\n%s", o.stderr)
			}
		})
	}
}

// A debugging tool works when the rest is broken.
func TestWithoutABusRootGoesOnDirectly(t *testing.T) {
	r, err := strconv.Atoi(must(t, "machinectl", "show", "--property=Leader", "--value", slim))
	if err != nil {
		t.Fatal(err)
	}
	o := runCommand(t, nil, "env", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/no/such/bus",
		"cntr-attach", "pid:"+strconv.Itoa(r), "hostname")
	if o.code != 0 || o.stdout != slim+"\n" || !strings.Contains(o.stderr, "without the service") {
		t.Errorf("got %+v", o)
	}
}
