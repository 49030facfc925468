//go:build integration

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// census counts what sessions could leave behind.
type census struct {
	daemonDescriptors, processes, mounts int
}

func count(t *testing.T) census {
	t.Helper()
	waitForNoScopes(t)
	for deadline := time.Now().Add(runTimeout); runCommand(t, nil, "pgrep", "--exact", "cntr-waiting", "--count").stdout != "1\n"; {
		if time.Now().After(deadline) {
			t.Fatal("there is not one process that waits for the next session")
		}
	}
	return look(t)
}

func look(t *testing.T) census {
	t.Helper()
	var c census
	c.daemonDescriptors = length(t, fmt.Sprintf("/proc/%d/fd/*", daemon(t)))
	for _, stat := range glob(t, "/proc/[0-9]*/comm") {
		comm, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		switch string(comm) {
		case "cntr-session\n", "cntr-reaper\n", "cntr-attach\n", "true\n":
			c.processes++
		}
	}
	for _, path := range glob(t, "/proc/[0-9]*/mountinfo") {
		mounts, _ := os.ReadFile(path) // some end meanwhile
		c.mounts += strings.Count(string(mounts), " fuse.cntr ")
	}
	return c
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func length(t *testing.T, pattern string) int { return len(glob(t, pattern)) }

func TestTwoHundredCyclesLeakNothing(t *testing.T) {
	for range 5 {
		succeeds(t, booted, "true") // what is opened once and kept
	}
	before := count(t)
	during, _ := sleeper(t, booted)
	if c := look(t); c.mounts == 0 || c.processes == 0 {
		t.Fatalf("a session is not seen: %+v", c)
	}
	_ = during.cmd.Process.Kill()
	for i := range 200 {
		succeeds(t, machines[i%len(machines)], "true")
	}
	after := count(t)
	if after.daemonDescriptors > before.daemonDescriptors+2 { // connections come and go
		t.Errorf("descriptors of the service: %d before, %d after", before.daemonDescriptors, after.daemonDescriptors)
	}
	after.daemonDescriptors = before.daemonDescriptors
	if after != before {
		t.Errorf("before %+v, after %+v", before, after)
	}
	t.Logf("before %+v, after %+v", before, after)
}

func TestTwentySessionsAtOnce(t *testing.T) {
	var sessions []*running
	for i := range 20 {
		sessions = append(sessions, start(t, machines[i%len(machines)], "sh", "-c", "echo ready; read n; exit $n"))
	}
	for _, r := range sessions {
		if got := r.line(); got != "ready" {
			t.Errorf("got %q", got)
		}
	}
	if n := len(scopes(t)); n != 20 {
		t.Errorf("%d scopes", n)
	}
	var all sync.WaitGroup
	for i, r := range sessions {
		all.Add(1)
		go func() {
			defer all.Done()
			if _, err := fmt.Fprintf(r.stdin, "%d\n", i); err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	for i, r := range sessions {
		if code := r.exit(runTimeout); code != i {
			t.Errorf("session %d: exit status %d: %s", i, code, &r.stderr)
		}
	}
	waitForNoScopes(t)
}
