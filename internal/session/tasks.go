package session

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// ownTasks is what a session needs besides its command: the threads of its process, see reserve, and a reaper. A Go process
// that cannot start a thread dies.
const ownTasks = 28

// checkTasks returns how many tasks may be started in the control group of a process: what is left of pids.max of the control
// group, or of one above it, up to that of root, which has none (the kernel's cgroup-v2, PID). It is -1 without a limit, or
// with a kernel without this controller. A session that has no room for its own threads is refused.
func checkTasks(pid int) (int, error) {
	cgroup, err := cgroupOf(uint32(pid))
	if err != nil {
		return 0, err
	}
	root, err := cgroupDir("/")
	if err != nil {
		return 0, err
	}
	least := -1
	for ; cgroup != "/" && cgroup != "."; cgroup = filepath.Dir(cgroup) {
		most, err := readTasks(filepath.Join(root, cgroup, "pids.max"))
		if err != nil {
			return 0, err
		}
		if most < 0 {
			continue
		}
		now, err := readTasks(filepath.Join(root, cgroup, "pids.current"))
		if err != nil {
			return 0, err
		}
		if now+ownTasks > most {
			return 0, fail.New(fail.LimitsExceeded, "raise its TasksMax=",
				"%s has %d tasks and may have %d; a session needs %d for itself", filepath.Base(cgroup), now, most, ownTasks)
		}
		if least < 0 || most-now < least {
			least = most - now
		}
	}
	return least, nil
}

const (
	fewTasks      = 1000 // a command that means no harm can use them up
	serverThreads = 12
	spareThreads  = 12
	reservedPs    = 4
)

// reserve starts the threads that the session process may need, while it still can: afterwards the command may use up what is
// left.
func (p *process) reserve() {
	p.reserved = true
	// Whatever is idle collects garbage when there is some: as many threads as there are Ps, besides those that are in system calls.
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), reservedPs))
	p.fs.Reserve(serverThreads)
	// The runtime keeps a thread whose goroutine has ended, for the next one that it has need of.
	var started, ended sync.WaitGroup
	started.Add(spareThreads)
	ended.Add(spareThreads)
	for range spareThreads {
		go func() {
			defer ended.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started.Done()
			started.Wait()
		}()
	}
	ended.Wait()
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
