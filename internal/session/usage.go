package session

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/status"
)

// readUsage reads what the kernel has counted for a control group, given by its directory (cgroup-v2 of the kernel's
// documentation). A session's group has no others below it that the kernel would not count with it.
func readUsage(dir string) status.Usage {
	if dir == "" {
		return status.NoUsage
	}
	u := status.NoUsage
	if data, err := os.ReadFile(dir + "/cpu.stat"); err == nil {
		if usec := sumFields(data, "usage_usec "); usec != status.Unknown {
			u.CPUNSec = usec * 1000
		}
	}
	for name, to := range map[string]*uint64{"memory.current": &u.MemoryCurrent, "memory.peak": &u.MemoryPeak} {
		if data, err := os.ReadFile(dir + "/" + name); err == nil {
			if n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64); err == nil {
				*to = n
			}
		}
	}
	if data, err := os.ReadFile(dir + "/io.stat"); err == nil {
		u.IORead, u.IOWritten = 0, 0 // no line: no device was used
		if n := sumFields(data, "rbytes="); n != status.Unknown {
			u.IORead, u.IOWritten = n, sumFields(data, "wbytes=")
		}
	}
	return u
}

// sumFields adds up the numbers behind each occurrence of a key; Unknown if there is none.
func sumFields(data []byte, key string) uint64 {
	sum, found := uint64(0), false
	for {
		_, rest, ok := bytes.Cut(data, []byte(key))
		if !ok {
			break
		}
		data = rest
		end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(rest)
		}
		if n, err := strconv.ParseUint(string(rest[:end]), 10, 64); err == nil {
			sum, found = sum+n, true
		}
	}
	if !found {
		return status.Unknown
	}
	return sum
}

// Usage returns what a running session has cost so far.
func (l *Launcher) Usage(s *Session) status.Usage {
	cgroup, err := cgroupOf(uint32(s.PID))
	if err != nil || s.Scope == "" || filepath.Base(cgroup) != s.Scope || !s.Process.Alive() {
		return status.NoUsage
	}
	dir, err := cgroupDir(cgroup)
	if err != nil {
		return status.NoUsage
	}
	return readUsage(dir)
}

// resultFile is where a session leaves its end for the service that lists it: not with it, as it may be another one by then.
func resultFile(dir, id string) string { return filepath.Join(dir, id+".json") }

// leaveResult writes the end of a session to the directory of results, if there is one.
func leaveResult(s status.Status, dir, id string) error {
	if dir == "" {
		return nil
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(resultFile(dir, id), data, 0o600)
}

// KeepResults has sessions leave their ends in a directory, which is made, for [Launcher.Result]. Ends that nobody has
// asked for since the last service are dropped.
func (l *Launcher) KeepResults(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	old, err := filepath.Glob(resultFile(dir, "*"))
	if err != nil {
		return err
	}
	for _, file := range old {
		_ = os.Remove(file) // one that stays is nobody's
	}
	l.results = dir
	return nil
}

// Result returns how a session ended, once its process has. A session process that was killed has left nothing.
func (l *Launcher) Result(id string) status.Status {
	file := resultFile(l.results, id)
	data, err := os.ReadFile(file)
	if err != nil {
		return status.Killed()
	}
	_ = os.Remove(file) // it would only be told again
	return status.Read(bytes.NewReader(data))
}

// usageOf returns what this process's session has cost.
func (p *process) usage() (status.Usage, time.Duration) {
	dir := ""
	if p.members != nil {
		dir = p.members.dir
	}
	return readUsage(dir), time.Since(p.request.Info.Started)
}
