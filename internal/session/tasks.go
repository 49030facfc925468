package session

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// ownTasks is what a session needs besides its command: a reaper, and the threads of its file server, that start as they are
// needed. A Go process that cannot start a thread dies.
const ownTasks = 32

// checkTasks refuses a session whose process is in a control group that leaves it no room for its own threads: pids.max
// of the control group or of one above it, up to that of root, which has none (the kernel's cgroup-v2, PID). A kernel without
// this controller has no limit.
func checkTasks(pid int) error {
	cgroup, err := cgroupOf(uint32(pid))
	if err != nil {
		return err
	}
	root, err := cgroupDir("/")
	if err != nil {
		return err
	}
	for ; cgroup != "/" && cgroup != "."; cgroup = filepath.Dir(cgroup) {
		most, err := readTasks(filepath.Join(root, cgroup, "pids.max"))
		if err != nil {
			return err
		}
		if most < 0 {
			continue
		}
		now, err := readTasks(filepath.Join(root, cgroup, "pids.current"))
		if err != nil {
			return err
		}
		if now+ownTasks > most {
			return fail.New(fail.LimitsExceeded, "raise its TasksMax=",
				"%s has %d tasks and may have %d; a session needs %d for itself", filepath.Base(cgroup), now, most, ownTasks)
		}
	}
	return nil
}

// readTasks reads a file of the pids controller: -1 without a limit, or without the file.
func readTasks(path string) (int, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	text := strings.TrimSpace(string(data))
	if err != nil || text == "max" {
		return -1, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
