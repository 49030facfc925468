//go:build integration

package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// offerURing turns FUSE over io_uring on (Y) or off (N), for the whole host, for the length of a test.
func offerURing(t *testing.T, to string) {
	t.Helper()
	before := must(t, "/usr/lib/testhost/uring", to)
	t.Cleanup(func() { must(t, "/usr/lib/testhost/uring", before) })
}

// A session's file system is served over io_uring where the host offers that, and says so.
func TestSessionsUseURing(t *testing.T) {
	for offered, want := range map[string]string{"N": "/dev/fuse", "Y": "io_uring"} {
		offerURing(t, offered)
		r, scope := sleeper(t, booted)
		id := regexp.MustCompile(`-([0-9a-f]{8})\.scope$`).FindStringSubmatch(scope)[1]
		if got := must(t, "cntrctl", "status", id); !strings.Contains(got, "\n Transport: "+want+"\n") {
			t.Errorf("not over %s:\n%s", want, got)
		}
		// Nobody else may keep a ring: it would outlive the session process.
		for _, pid := range processes(t, scope) {
			maps := string(readFile(t, fmt.Sprintf("/proc/%d/maps", pid)))
			if ring := strings.Contains(maps, "[io_uring]"); ring != (offered == "Y" && pid == sessionProcess(t, scope)) {
				t.Errorf("over %s, process %d (%s): has a ring: %v", want, pid, readFile(t, fmt.Sprintf("/proc/%d/comm", pid)), ring)
			}
		}
		_ = r.cmd.Process.Kill()
		r.exit(runTimeout)
		waitForNoScopes(t)
	}
}

// What must not depend on the transport.
func TestSessionsOverURing(t *testing.T) {
	offerURing(t, "Y")
	for name, test := range map[string]func(*testing.T){
		"killed session process": TestKilledSessionProcessLeavesNothing,
		"killed reaper":          TestKilledReaperEndsTheSession,
		"stopped machine":        TestStoppedMachineEndsTheSession,
		"twenty at once":         TestTwentySessionsAtOnce,
		"at exec":                TestWhatACommandSeesAtExec,
		"ptrace":                 TestMachineGrabsProcesses,
	} {
		t.Run(name, test)
	}
}
