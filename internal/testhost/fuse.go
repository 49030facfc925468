package testhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A process that waits for an answer from a FUSE server cannot be killed once the request was taken up.
// If the server is a thread of the same process, it was killed, but the thread that waits keeps the
// process's descriptors, /dev/fuse among them, so the kernel never learns that there is no server any
// more. What ends the wait is to abort the connection (Documentation/filesystems/fuse.rst, "Aborting a
// filesystem connection").

// abortFUSE aborts all FUSE connections that are mounted for some process below the leader.
func abortFUSE(leader process, dir string) error {
	connections := fuseConnections(descendants(leader.PID))
	if len(connections) == 0 {
		return nil
	}
	// It need not be mounted on /sys/fs/fuse/connections.
	control := filepath.Join(dir, "fusectl")
	if err := os.Mkdir(control, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	var errs []error
	for connection := range connections {
		err := os.WriteFile(filepath.Join(control, connection, "abort"), []byte("1"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := unix.Unmount(control, unix.MNT_DETACH); err != nil {
		errs = append(errs, fmt.Errorf("unmount fusectl: %w", err))
	}
	return errors.Join(append(errs, os.Remove(control))...)
}

// fuseConnections are the FUSE file systems in the mount namespaces of some processes, by the name that
// fusectl gives them: the minor number of the device.
func fuseConnections(pids []int) map[string]bool {
	found := map[string]bool{}
	for _, pid := range pids {
		// The threads': a process whose main thread has ended has no mount namespace of its own.
		tables, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/mountinfo", pid))
		for _, table := range tables {
			data, err := os.ReadFile(table)
			if err != nil {
				continue
			}
			for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
				m, err := parseMount(line)
				if err != nil || m.fstype != "fuse" && !strings.HasPrefix(m.fstype, "fuse.") {
					continue
				}
				if major, minor, ok := strings.Cut(m.device, ":"); ok && major == "0" {
					found[minor] = true
				}
			}
		}
	}
	return found
}

// descendants are the processes below one, and itself, zombies too.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if err != nil {
			continue
		}
		if data, err := os.ReadFile(stat); err == nil {
			if parent, err := parseParent(data); err == nil {
				children[parent] = append(children[parent], child)
			}
		}
	}
	found := []int{pid}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}
