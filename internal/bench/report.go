package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Report is all that a run found out.
type Report struct {
	Kernel   string
	CPU      string
	CPUs     int
	MemoryMB uint64
	Versions map[string]string // of the programs, by package
	Begun    time.Time
	Ended    time.Time
	Rounds   int
	Busy     float64 // load average when it began: what others did at the time
	Rows     []Row
	Upcalls  []Upcalls
	Memory   []Memory
}

// A Row is a workload and how long it took in each setting.
type Row struct {
	Name   string
	Title  string
	Bar    float64                     `json:",omitempty"`
	Times  map[Setting][]time.Duration // nanoseconds, one for each round
	Failed map[Setting]string          `json:",omitempty"` // why there are none

	workload Workload
}

func newRow(w Workload) *Row {
	return &Row{
		Name: w.Name, Title: w.Title, Bar: w.Bar, workload: w,
		Times: map[Setting][]time.Duration{}, Failed: map[Setting]string{},
	}
}

// newReport begins a report with what it was measured on.
func newReport(rounds int) (*Report, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	r := &Report{
		Kernel:   unix.ByteSliceToString(name.Release[:]),
		CPU:      cpuModel(),
		CPUs:     runtime.NumCPU(),
		MemoryMB: info.Totalram * uint64(info.Unit) / mib,
		Versions: map[string]string{},
		Begun:    time.Now(),
		Rounds:   rounds,
		Busy:     float64(info.Loads[0]) / (1 << 16), // SI_LOAD_SHIFT
	}
	version, err := exec.Command("cntr-attach", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("cntr-attach --version: %w", err)
	}
	r.Versions["cntr-attach"] = strings.TrimPrefix(strings.TrimSpace(string(version)), "cntr-attach ")
	out, err := exec.Command("dpkg-query", "--show", "--showformat=${Package} ${Version}\n",
		"cntr", "coreutils", "findutils", "gcc", "git", "grep", "sqlite3", "tar").Output()
	if err != nil {
		return nil, fmt.Errorf("versions of packages: %w", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if name, version, ok := strings.Cut(line, " "); ok {
			r.Versions[name] = version
		}
	}
	return r, nil
}

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
