package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is what the server of a session uses at some point.
type Memory struct {
	When        string
	Files       int // walked so far
	RSS         int // KiB
	Private     int // KiB of it that no other process has
	Descriptors int
}

// walkMany walks the files that are there to fill memory.
var walkMany = Workload{Name: "walk-many", run: shell(`find ` + dir + `/many -printf '%s\n' >/dev/null`)}

const manyPerDir = 1_000

// measureMemory takes the memory of a session's server before and after a walk.
func (b *bench) measureMemory(files int) ([]Memory, error) {
	many := filepath.Join(dir, "many")
	defer os.RemoveAll(many)
	if err := makeMany(many, files); err != nil {
		return nil, err
	}
	b.stop(Ours)
	w, err := b.worker(Ours, false)
	if err != nil {
		return nil, err
	}
	defer b.stop(Ours)
	pid, err := server()
	if err != nil {
		return nil, err
	}
	var all []Memory
	take := func(when string, files int) error {
		m, err := memoryOf(pid)
		if err != nil {
			return err
		}
		m.When, m.Files = when, files
		all = append(all, m)
		return nil
	}
	if err := take("at the start", 0); err != nil {
		return nil, err
	}
	if _, err := w.do("run", walkMany.Name, w.setting.dir()); err != nil {
		return nil, err
	}
	if err := take("after the walk", files); err != nil {
		return nil, err
	}
	if err := dropCaches(2); err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second)
	if err := take("2 s after the kernel dropped its caches", files); err != nil {
		return nil, err
	}
	time.Sleep(28 * time.Second)
	return all, take("30 s after", files)
}

// makeMany makes empty files.
func makeMany(path string, files int) error {
	for i := range files {
		sub := filepath.Join(path, fmt.Sprintf("d%d", i/manyPerDir))
		if i%manyPerDir == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		name := sub + "/" + strconv.Itoa(i)
		if err := unix.Mknod(name, unix.S_IFREG|0o644, 0); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	return nil
}

// server finds the process that serves the only session that there is: of those of the session's program, the one
// that was not started by another of them.
func server() (int, error) {
	sessions := map[int]bool{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, d := range dirs {
		cmdline, err := os.ReadFile(d + "/cmdline")
		if name, _, _ := strings.Cut(string(cmdline), "\x00"); err == nil && filepath.Base(name) == "cntr-session" {
			pid, err := strconv.Atoi(filepath.Base(d))
			if err != nil {
				return 0, err
			}
			sessions[pid] = true
		}
	}
	var found []int
	for pid := range sessions {
		parent, err := strconv.Atoi(statusField(pid, "PPid"))
		if err == nil && !sessions[parent] {
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("there are %d sessions instead of one", len(found))
	}
	return found[0], nil
}

func statusField(pid int, name string) string {
	return procField(fmt.Sprintf("/proc/%d/status", pid), name)
}

// procField is the first word of a field in a file of procfs.
func procField(path, name string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return words[0]
			}
		}
	}
	return ""
}

// memoryOf reads what a process uses.
func memoryOf(pid int) (Memory, error) {
	rollup := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	rss, err1 := strconv.Atoi(procField(rollup, "Rss"))
	clean, err2 := strconv.Atoi(procField(rollup, "Private_Clean"))
	dirty, err3 := strconv.Atoi(procField(rollup, "Private_Dirty"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return Memory{}, fmt.Errorf("read %s: %w", rollup, err)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return Memory{}, err
	}
	return Memory{RSS: rss, Private: clean + dirty, Descriptors: len(descriptors)}, nil
}
