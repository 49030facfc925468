//go:build integration

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// withoutSystemd is a command line in front of cntr-attach that hides the bus and systemd from it, as on a
// host that has neither.
var withoutSystemd = []string{
	"unshare", "--mount", "sh", "-c",
	`mount -t tmpfs none /run && exec cntr-attach --direct "$@"`, "cntr-attach",
}

func TestDirectNeedsNoSystemd(t *testing.T) {
	for _, machine := range machines {
		t.Run(machine, func(t *testing.T) {
			pid := "pid:" + strconv.Itoa(leaderOf(t, machine))
			direct := func(command ...string) outcome {
				return runCommand(t, nil, append(append(withoutSystemd, pid), command...)...)
			}
			if o := direct("hostname"); o != (outcome{machine + "\n", "", 0}) {
				t.Errorf("hostname: %+v", o)
			}
			if o := direct("sh", "-c", "exit 7"); o != (outcome{"", "", 7}) {
				t.Errorf("exit 7: %+v", o)
			}
			if o := direct("cat", "/proc/self/cgroup"); strings.Contains(o.stdout, ".scope") {
				t.Errorf("there is a scope: %+v", o)
			}
			// Without a control group, who belongs to the session is told by its mount namespace.
			if o := direct("sh", "-c", "sleep 1000 & setsid sleep 1000 & echo started"); o != (outcome{"started\n", "", 0}) {
				t.Errorf("background: %+v", o)
			}
			if left := runCommand(t, nil, "pgrep", "-x", "sleep", "-a"); strings.Contains(left.stdout, "sleep 1000") {
				t.Errorf("left: %s", left.stdout)
			}
		})
	}
}

func TestDirectSessionLeavesNothingWhenKilled(t *testing.T) {
	r := startCommand(t, append(append(withoutSystemd, "pid:"+strconv.Itoa(leaderOf(t, slim))),
		"sh", "-c", "(setsid sleep 1000 &); sleep 1000 & echo ready; wait")...)
	if got := r.line(); got != "ready" {
		t.Fatalf("got %q", got)
	}
	var session int
	var inside []int
	// The shell's children are there when it says so, but may not have executed sleep yet.
	for deadline := time.Now().Add(runTimeout); session == 0 || len(inside) != 3; {
		if time.Now().After(deadline) {
			t.Fatalf("session process %d, in the session %v", session, inside)
		}
		session, inside = directSession(t)
	}
	all := hold(t, inside...)
	if err := unix.Kill(session, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	all.end(t, 2*time.Second)
	if code := r.exit(10 * time.Second); code != 125 {
		t.Errorf("exit status %d, %s", code, &r.stderr)
	}
}

// directSession finds the session process, and the processes of the command that the test above runs.
func directSession(t *testing.T) (session int, inside []int) {
	t.Helper()
	for _, path := range glob(t, "/proc/[0-9]*/cmdline") {
		cmdline, _ := os.ReadFile(path) // some end meanwhile
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err != nil {
			t.Fatal(err)
		}
		switch comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); {
		case string(comm) == "cntr-session\n":
			session = pid
		case string(cmdline) == "sleep\x001000\x00", strings.HasPrefix(string(cmdline), "sh\x00-c\x00(setsid"):
			inside = append(inside, pid)
		}
	}
	return session, inside
}
