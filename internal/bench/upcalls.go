package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Upcalls are the requests that reached the server of a session while a workload ran.
type Upcalls struct {
	Name  string
	Title string
	Ops   int
	// Counts are by request, without its prefix FUSE_. FORGET is no request that anybody waits for, and is not
	// among them.
	Counts map[Setting]map[string]int
}

// PerOp is how many requests one operation takes, of the kind that is named, or of any if none is.
func (u *Upcalls) PerOp(s Setting, request string) float64 {
	n := 0
	for name, count := range u.Counts[s] {
		if request == "" || name == request {
			n += count
		}
	}
	return float64(n) / float64(u.Ops)
}

const countedFiles = 1_000

// Counted are the workloads whose upcalls are counted.
func Counted() []Workload {
	nothing := func(place) error { return nil }
	stats := func(p place) error {
		return repeat(countedFiles, func(i int) error { return stat(treeFile(p, i)) })
	}
	buf := make([]byte, 16*kib)
	reads := func(p place) error {
		return repeat(countedFiles, func(i int) error { return readWhole(treeFile(p, i), buf) })
	}
	walk := shell(`find $DATA/tree -printf '%s\n' >/dev/null`)
	const walked = treeFiles + treeFiles/filesPerDir
	file := func(p place, i int) string { return filepath.Join(p.scratch, strconv.Itoa(i)) }
	makes := func(files int) func(p place) error {
		return func(p place) error {
			return repeat(files, func(i int) error { return writeWhole(file(p, i), unix.O_CREAT|unix.O_EXCL, buf[:kib]) })
		}
	}
	return []Workload{
		{Name: "count-stat", Title: "stat, first", Ops: countedFiles, prepare: nothing, run: stats},
		{Name: "count-stat-again", Title: "stat, again at once", Ops: countedFiles, run: stats},
		{Name: "count-stat-later", Title: "stat, again later", Ops: countedFiles, pause: lapse, run: stats},
		{Name: "count-read", Title: "open, read, close, first", Ops: countedFiles, prepare: nothing, run: reads},
		{Name: "count-read-again", Title: "open, read, close, again at once", Ops: countedFiles, run: reads},
		{Name: "count-read-later", Title: "open, read, close, again later", Ops: countedFiles, pause: lapse, run: reads},
		{Name: "count-walk", Title: "find with sizes, each entry, first", Ops: walked, prepare: nothing, run: walk},
		{Name: "count-walk-again", Title: "find with sizes, each entry, again at once", Ops: walked, run: walk},
		{Name: "count-walk-later", Title: "find with sizes, each entry, again later", Ops: walked, pause: lapse, run: walk},
		{Name: "count-create", Title: "create, write 1 KiB, close", Ops: countedFiles, writes: true, prepare: nothing, run: makes(countedFiles)},
		// So few that they are made and removed before what is known of them expires.
		{Name: "count-unlink", Title: "unlink", Ops: 100, writes: true, prepare: makes(100), run: func(p place) error {
			return repeat(100, func(i int) error { return unix.Unlink(file(p, i)) })
		}},
		{Name: "count-write", Title: "write 4 KiB to an open file", Ops: countedFiles, writes: true, prepare: nothing, run: func(p place) error {
			return blocks(filepath.Join(p.work, "big"), unix.O_RDWR|unix.O_CREAT, 4*kib, countedFiles, countedFiles, false, unix.Pwrite)
		}},
		{
			Name: "count-exec", Title: "sh runs /bin/true", Ops: 100, prepare: shell(`/bin/true`),
			run: shell(`i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i + 1)); done`),
		},
	}
}

// countUpcalls counts what the servers of both kinds of session are asked.
func (b *bench) countUpcalls(settings ...Setting) ([]Upcalls, error) {
	if err := freshScratch(); err != nil {
		return nil, err
	}
	var all []Upcalls
	for _, w := range Counted() {
		u := Upcalls{Name: w.Name, Title: w.Title, Ops: w.Ops, Counts: map[Setting]map[string]int{}}
		for _, s := range settings {
			if err := dropCaches(2); err != nil {
				return nil, err
			}
			err := b.within(s, &w, func(do func(string) (time.Duration, error)) error {
				counts, err := countRequests(b.workers[s].device, func() error {
					_, err := do("run")
					return err
				})
				u.Counts[s] = counts
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%s in %s: %w", w.Name, s, err)
			}
		}
		all = append(all, u)
	}
	return all, nil
}

// errNoTracepoint: it needs Linux 6.10, tracefs, and a kernel that was built with it.
var errNoTracepoint = errors.New("no tracepoint fuse:fuse_request_send")

// requestLine finds the request's name in a line of the trace.
var requestLine = regexp.MustCompile(`fuse_request_send: .* opcode (\d+) \((?:FUSE_)?(\w+)\)`)

// countRequests counts the requests that go to the server of the FUSE mount with a device number while f runs. It
// uses a trace buffer of its own, so that it is in nobody's way.
func countRequests(device uint64, f func() error) (_ map[string]int, err error) {
	const tracing = "/sys/kernel/tracing"
	if _, err := os.Stat(filepath.Join(tracing, "events/fuse/fuse_request_send")); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTracepoint, err)
	}
	instance := filepath.Join(tracing, "instances", fmt.Sprintf("bench-%d", os.Getpid()))
	if err := os.Mkdir(instance, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(instance)) }()
	set := func(name, value string) error { return os.WriteFile(filepath.Join(instance, name), []byte(value), 0) }
	const event = "events/fuse/fuse_request_send/"
	if err := errors.Join(
		set("buffer_size_kb", "16384"), // for each CPU: some 300,000 requests
		set(event+"filter", fmt.Sprintf("connection == %d", device)),
		set(event+"enable", "1")); err != nil {
		return nil, fmt.Errorf("set up tracing: %w", err)
	}
	err = f()
	if err := errors.Join(err, set(event+"enable", "0")); err != nil {
		return nil, err
	}
	stats, err := filepath.Glob(filepath.Join(instance, "per_cpu/cpu*/stats"))
	if err != nil {
		return nil, err
	}
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !strings.Contains(string(data), "\noverrun: 0\n") {
			return nil, errors.New("more requests than the trace buffer has room for")
		}
	}
	trace, err := os.ReadFile(filepath.Join(instance, "trace"))
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, m := range requestLine.FindAllStringSubmatch(string(trace), -1) {
		counts[m[2]]++
	}
	return counts, nil
}
