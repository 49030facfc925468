package testhost

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Where systemd runs, systemd-nspawn asks it for a scope. Elsewhere, as in a container without an init,
// it works in the control group that it is started in, and makes its groups in there. It is given one
// that is named after the test host, so that what it leaves can be found and removed.

// controlGroups returns the test host's control group directories: in the unified hierarchy, and in
// systemd's own where that is a separate one (the kernel's "hybrid" layout).
func controlGroups(name string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		m, err := parseMount(scanner.Text())
		if err != nil {
			return nil, err
		}
		if m.fstype == "cgroup2" || m.fstype == "cgroup" && m.has("name=systemd") {
			dirs = append(dirs, filepath.Join(m.point, "cntr-attach-testhost-"+name))
		}
	}
	if len(dirs) == 0 {
		return nil, errors.New("no control group hierarchy of version 2 is mounted\n" +
			"hint: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	}
	return dirs, scanner.Err()
}

// systemdRuns is sd_booted(3).
func systemdRuns() bool {
	_, err := os.Lstat("/run/systemd/system")
	return err == nil
}

// makeControlGroups makes the directories and returns the files that a process number is written to.
func makeControlGroups(name string) ([]string, error) {
	dirs, err := controlGroups(name)
	if err != nil {
		return nil, err
	}
	var procs []string
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a control group: %w", err)
		}
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	return procs, nil
}

// removeControlGroups removes the directories, the innermost first. All processes must be gone.
func removeControlGroups(name string) error {
	dirs, err := controlGroups(name)
	if err != nil {
		return nil // none mounted, none left
	}
	for _, top := range dirs {
		var below []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				below = append(below, path)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, dir := range slices.Backward(below) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove control group: %w", err)
			}
		}
	}
	return nil
}
