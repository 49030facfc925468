//go:build integration

package main

import (
	"encoding/json"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// burner uses two seconds of CPU time by the kernel's count (proc_pid_stat(5), in hundredths), and no more.
const burner = `while :; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done
	read -r line < /proc/$$/stat; set -- $line; [ $((${14} + ${15})) -lt 200 ] || exit 5; done`

// What is told of a session's cost is what it has cost, everywhere that it is told.
func TestAccountingCountsTheBurner(t *testing.T) {
	c := connect(t)
	events, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	a, err := c.Attach(bounded(t), "debu", dbus.AttachOptions{Command: []string{"sh", "-c", burner}})
	if err != nil {
		t.Fatal(err)
	}
	end := status.Read(a.Status)
	wall := time.Since(begin)
	_ = a.Status.Close()
	if end.ExitCode() != 5 || end.Usage == nil {
		t.Fatalf("%+v", end)
	}
	within := func(what string, nsec uint64) {
		t.Helper()
		if got := time.Duration(nsec); math.Abs(got.Seconds()-2) > 0.2 {
			t.Errorf("%s: %v of CPU time, want 2s", what, got)
		}
	}
	within("the status pipe", end.Usage.CPUNSec)
	if end.Wall > wall || end.Wall < wall-time.Second {
		t.Errorf("it took %v, and is told as %v", wall, end.Wall)
	}
	for e := range events {
		if e.ID == a.ID && e.Removed {
			cpu, _ := e.Details["CPUUsageNSec"].(uint64)
			within("SessionRemoved", cpu)
			if e.Details["Result"] != "exit-code" || e.Details["ExitStatus"] != int32(5) {
				t.Errorf("SessionRemoved: %v", e.Details)
			}
			break
		}
	}
	entry := journalEntry(t, "5d2d4b1ad1c9459f9fb2b2f9f5b1be02", a.ID)
	cpu, err := strconv.ParseUint(entry["CPU_USAGE_NSEC"].(string), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	within("the journal", cpu)
}

// journalEntry returns the journal's entry with a message id about a session.
func journalEntry(t *testing.T, message, id string) map[string]any {
	t.Helper()
	must(t, "journalctl", "--sync")
	var entry map[string]any
	out := must(t, "journalctl", "--output=json", "--lines=1", "MESSAGE_ID="+message, "CNTR_SESSION="+id)
	if err := json.Unmarshal([]byte(out), &entry); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return entry
}

// The journal answers who ran what in which machine, with which rights and result, also with nobody but the session there.
func TestJournalTellsWhoRanWhat(t *testing.T) {
	grant(t, "attach", "attach-writable")
	out, ok := try(t, alice("cntr-attach", "-v", "--writable", "--user=1234", "debu", "sh", "-c", "kill -TERM $$ # audited")...)
	if ok || !strings.Contains(out, "cntr-attach: signal 15, ") || !strings.Contains(out, " CPU time") {
		t.Errorf("-v tells: %s", out)
	}
	must(t, "journalctl", "--sync")
	id := must(t, "sh", "-c",
		"journalctl --output=json --lines=1 MESSAGE_ID=5d2d4b1ad1c9459f9fb2b2f9f5b1be02 CNTR_CALLER_UID=1000 | sed 's/.*\"CNTR_SESSION\":\"\\([^\"]*\\).*/\\1/'")
	want := map[string]string{
		"CNTR_MACHINE": "nspawn:debu", "CNTR_CALLER_UID": "1000", "CNTR_USER": "1234", "CNTR_WRITABLE": "true",
		"CNTR_COMMAND": "sh -c kill -TERM $$ # audited", "CNTR_SCOPE": "cntr-debu-" + id + ".scope", "_UID": "0",
	}
	for _, message := range []string{"aae6bfcd98cf4dcca5d7b47f1a5a7a01", "5d2d4b1ad1c9459f9fb2b2f9f5b1be02"} {
		entry := journalEntry(t, message, id)
		for field, value := range want {
			if entry[field] != value {
				t.Errorf("%s is %v, want %s", field, entry[field], value)
			}
		}
		want["CNTR_RESULT"], want["CNTR_EXIT_CODE"] = "signal", "143"
	}
	if out := must(t, "journalctl", "-u", unit, "--output=cat", "--grep=Session "+id); strings.Count(out, "\n") != 1 {
		t.Errorf("the service's journal has\n%s", out)
	}
	must(t, "journalctl", "--update-catalog")
	out = must(t, "journalctl", "-x", "--no-pager", "--lines=1", "MESSAGE_ID=5d2d4b1ad1c9459f9fb2b2f9f5b1be02", "CNTR_SESSION="+id)
	if !strings.Contains(out, "A session in nspawn:debu has ended") || !strings.Contains(out, "Its result is signal, its exit status 143") {
		t.Errorf("the catalog says\n%s", out)
	}
}

func TestPropertiesLimitTheScope(t *testing.T) {
	c := connect(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	a, err := c.Attach(bounded(t), "slim", dbus.AttachOptions{
		Command: []string{"cat"}, Stdin: r, Properties: []string{"CPUQuota=20%", "MemoryMax=1G", "TasksMax=77", "RuntimeMaxSec=1h"},
	})
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Status.Close()
	got := must(t, "systemctl", "show", "-p", "CPUQuotaPerSecUSec,MemoryMax,TasksMax,RuntimeMaxUSec,Slice,Description", "cntr-slim-"+a.ID+".scope")
	for _, want := range []string{
		"CPUQuotaPerSecUSec=200ms", "MemoryMax=1073741824", "TasksMax=77", "RuntimeMaxUSec=1h", "Slice=cntr.slice",
		"Description=Session in nspawn:slim as root: cat",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
	_, err = c.Attach(bounded(t), "slim", dbus.AttachOptions{Command: []string{"true"}, Properties: []string{"Slice=system.slice"}})
	if !fail.Is(err, fail.InvalidArgument) || !strings.Contains(err.Error(), "option properties") {
		t.Errorf("a property that is none of a session's: %v", err)
	}
}

// systemd may refuse a scope; then there is an error that says so, and nothing is left.
func TestRefusedScopeLeavesNothing(t *testing.T) {
	c := connect(t)
	_, err := c.Attach(bounded(t), "slim", dbus.AttachOptions{
		Command: []string{"true"}, Properties: []string{"IOReadBandwidthMax=/dev/../etc 1M"},
	})
	if err == nil || !strings.Contains(err.Error(), "systemd") {
		t.Errorf("systemd takes it, or it is not told who refused: %v", err)
	}
	awaitNoSession(t, c)
	if out := must(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "cntr-*.scope"); out != "" {
		t.Errorf("left is %s", out)
	}
}
