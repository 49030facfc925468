//go:build integration

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/hostile"
	"github.com/cntr-attach/cntr-attach/internal/shield"
)

// The hostile suite: what the root of a machine tries against a session. It is in the files hostile_*_test.go, each about
// one kind of attack, with the flaws of others that worked in that way. Each attempt must fail, within bounds, and
// leave nothing behind. The program of the tests is also the attacker, see package hostile.
//
//	CVE-2019-5736                   TestMachineGrabsProcesses, TestToolsTreeIsOutOfTheMachinesReach
//	CVE-2024-21626                  TestWhatACommandSeesAtExec, TestWorkingDirectoryIsNoDescriptor
//	CVE-2016-9962, -8649            TestMachineGrabsProcesses; package shield's TestMachineCannotTakeOverACommand
//	CVE-2015-1334, -2019-16884      TestMachineHasAFakeProc, TestFakeProcDoesNotSwallowTheLabel; package ns's TestEnterTakesOnTheLabel
//	CVE-2019-14271                  TestMachineHasPoisonedLibraries, TestMachineHasAPoisonedEnvironment
//	CVE-2018-15664, -2026-41579     TestMachineSwapsFilesForLinks, TestMachineFullOfTraps
//	CVE-2025-31133, -52565, -52881  TestMachineFullOfTraps, TestMachineHasAFakeProc, TestShellInATerminal
//	CVE-2017-5226                   TestCommandTypesIntoItsOwnTerminal, TestTerminalIsTheCommandsOwn
//	CVE-2022-29162                  TestWhatACommandSeesAtExec, TestSettingsOfTheCallerStayOutside
//	CVE-2016-6349, -2020-1712       in cmd/cntr-attachd

func TestMain(m *testing.M) {
	if role := os.Getenv("HOSTILE"); role != "" {
		if err := hostile.Run(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// attack starts a role of package hostile as root of a machine that was booted, and waits until it is ready.
func attack(t *testing.T, machine, role string, args ...string) *running {
	t.Helper()
	own := executable(t)
	const program = "/usr/local/bin/hostile"
	inside := filepath.Join("/var/lib/machines", machine, program)
	must(t, "install", "-m", "755", own, inside)
	t.Cleanup(func() { must(t, "rm", "-f", inside) })
	r := startCommand(t, append([]string{
		"systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--machine=" + machine, "--setenv=HOSTILE=" + role, program,
	}, args...)...)
	if got := r.line(); got != "ready" {
		t.Fatalf("got %q", got)
	}
	return r
}

// stop ends an attacker and returns the lines that it says about what it achieved.
func (r *running) stop() []string {
	r.t.Helper()
	if err := r.stdin.Close(); err != nil {
		r.t.Fatal(err)
	}
	if code := r.exit(runTimeout); code != 0 {
		r.t.Fatalf("the attacker failed with %d: %s", code, &r.stderr)
	}
	_ = r.stdout.SetReadDeadline(time.Now().Add(runTimeout))
	var lines []string
	b := make([]byte, 64<<10)
	n, _ := r.stdout.Read(b) // the writer has ended: it is all there
	for line := range strings.Lines(string(b[:n])) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return lines
}

// shielded reports whether this kernel lets sessions be shielded from ptrace.
func shielded(t *testing.T) bool {
	t.Helper()
	s, err := shield.Load()
	if err != nil {
		t.Logf("%v", err)
		return false
	}
	_ = s.Close()
	return true
}

// makeSecret makes a file of the host that nobody in a machine is to read.
func makeSecret(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(hostile.Secret, []byte(secret), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(hostile.Secret) })
}

const secret = "only for the host\n"

// handmade is a machine whose first process is a role of package hostile, in namespaces of its own and with a root
// directory that prepare lays out. It returns the typed name, and a function that kills it.
func handmade(t *testing.T, prepare func(root string), role string, args ...string) (name string, kill func()) {
	t.Helper()
	own := executable(t)
	root := filepath.Join(t.TempDir(), "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	prepare(root)
	r := &running{t: t, done: make(chan struct{}), cmd: exec.Command("unshare", append([]string{
		"--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--kill-child", own, root,
	}, args...)...)}
	r.cmd.Env = append(os.Environ(), "HOSTILE="+role)
	r.launch()
	if got := r.line(); got != "ready" {
		t.Fatalf("got %q: %s", got, &r.stderr)
	}
	children := strings.Fields(string(readFile(t, fmt.Sprintf("/proc/%d/task/%d/children", r.cmd.Process.Pid, r.cmd.Process.Pid))))
	if len(children) != 1 {
		t.Fatalf("unshare has the children %q", children)
	}
	return "pid:" + children[0], func() {
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}

// nothingIsLeft waits until there is no session, nor a process of one.
func nothingIsLeft(t *testing.T) {
	t.Helper()
	waitForNoScopes(t)
	for deadline := time.Now().Add(5 * time.Second); ; {
		var left []string
		for _, path := range glob(t, "/proc/[0-9]*/comm") {
			if comm, _ := os.ReadFile(path); string(comm) == "cntr-session\n" || string(comm) == "cntr-reaper\n" {
				left = append(left, path)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are left: %q", left)
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e7}, nil) // there is no event for the end of somebody else's process
	}
}
