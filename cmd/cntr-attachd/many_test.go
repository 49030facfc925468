//go:build integration

package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/dbus"
)

// memory is what a process has in bytes: of its own, and with what it shares (proc_pid_smaps(5)).
type memory struct{ private, rss uint64 }

func memoryOf(t testing.TB, pid int) memory {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var m memory
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "Private_Clean:", "Private_Dirty:", "Private_Hugetlb:":
			m.private += n << 10
		case "Rss:":
			m.rss += n << 10
		}
	}
	return m
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

// processesOf returns the session processes and their reapers by what they are called.
func processesOf(t testing.TB, scope string) map[string]int {
	t.Helper()
	data, err := os.ReadFile("/sys/fs/cgroup/cntr.slice/" + scope + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	for _, field := range strings.Fields(string(data)) {
		comm, err := os.ReadFile("/proc/" + field + "/comm")
		if err != nil {
			continue
		}
		if pids[strings.TrimSpace(string(comm))], err = strconv.Atoi(field); err != nil {
			t.Fatal(err)
		}
	}
	return pids
}

// crowd is many sessions at a time.
type crowd struct {
	sessions []*sleeper
	starts   []time.Duration // sorted
	private  uint64          // of all session processes and their reapers, in bytes
	worst    uint64          // of the one with the most
}

func startCrowd(t testing.TB, c *dbus.Client, n int) *crowd {
	t.Helper()
	crowd := &crowd{}
	for range n {
		begin := time.Now()
		s := attach(t, c, "slim")
		crowd.starts = append(crowd.starts, time.Since(begin))
		crowd.sessions = append(crowd.sessions, s)
	}
	slices.Sort(crowd.starts)
	for _, s := range crowd.sessions {
		pids := processesOf(t, "cntr-slim-"+s.ID+".scope")
		if pids["cntr-session"] == 0 || pids["cntr-reaper"] == 0 {
			t.Fatalf("session %s has %v", s.ID, pids)
		}
		one := memoryOf(t, pids["cntr-session"]).private + memoryOf(t, pids["cntr-reaper"]).private
		crowd.private += one
		crowd.worst = max(crowd.worst, one)
	}
	return crowd
}

// Sessions are small, however many there are.
func TestManySessions(t *testing.T) {
	const n, most = 30, 10 << 20
	c := connect(t)
	awaitNoSession(t, c)
	d := serviceProcess(t)
	attach(t, c, "slim").finish(t) // what it opens once, it keeps
	awaitNoSession(t, c)
	files := settledDescriptors(t, d)
	crowd := startCrowd(t, c, n)
	if got := len(sessionIDs(t, c)); got != n {
		t.Errorf("%d sessions are listed of %d", got, n)
	}
	if crowd.worst > most {
		t.Errorf("a session has %.1f MiB of its own", mib(crowd.worst))
	}
	t.Logf("%d sessions: %.1f MiB each (most %.1f), start p50 %v; the service %.1f MiB", n,
		mib(crowd.private)/n, mib(crowd.worst), crowd.starts[n/2], mib(memoryOf(t, d.PID).private))
	for _, s := range crowd.sessions {
		if end := s.finish(t); end.ExitCode() != 0 {
			t.Errorf("%+v", end)
		}
	}
	awaitNoSession(t, c)
	awaitDescriptors(t, d, files)
}

// 200 sessions at a time, or as many as $CNTR_SESSIONS says: what they cost, and how quick the service is with them.
func BenchmarkManySessions(b *testing.B) {
	n := 200
	if s := os.Getenv("CNTR_SESSIONS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	c := connect(b)
	d := serviceProcess(b)
	before := memoryOf(b, d.PID)
	alone := startCrowd(b, c, 1)
	_ = alone.sessions[0].finish(b)
	var shells []time.Duration
	begin := time.Now()
	crowd := startCrowd(b, c, n)
	all := time.Since(begin)
	for range 20 {
		begin := time.Now()
		must(b, "machinectl", "--quiet", "shell", "deb", "/bin/true")
		shells = append(shells, time.Since(begin))
	}
	slices.Sort(shells)
	with, calls := memoryOf(b, d.PID), 0
	begin = time.Now()
	for b.Loop() {
		if _, err := c.ListSessions(b.Context()); err != nil {
			b.Fatal(err)
		}
		calls++
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(crowd.starts[n/2]), "start-p50-ms")
	b.ReportMetric(ms(crowd.starts[n*95/100]), "start-p95-ms")
	b.ReportMetric(ms(shells[len(shells)/2]), "machinectl-shell-p50-ms")
	b.ReportMetric(all.Seconds(), "all-started-s")
	b.ReportMetric(mib(crowd.private)/float64(n), "MiB/session")
	b.ReportMetric(mib(crowd.worst), "MiB-most")
	b.ReportMetric(mib(with.private), "MiB-service")
	b.ReportMetric(mib(before.private), "MiB-service-before")
	b.ReportMetric(float64(calls)/time.Since(begin).Seconds(), "ListSessions/s")
	for _, s := range crowd.sessions {
		s.finish(b)
	}
}
