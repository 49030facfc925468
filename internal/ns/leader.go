package ns

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounding returns the capability bounding set of process pid, a bit for each capability.
func Bounding(pid int) (uint64, error) {
	hex, err := statusField(pid, "CapBnd")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(hex, 16, 64)
}

// statusField returns a field of /proc/PID/status, without blanks around it.
func statusField(pid int, name string) (string, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := bytes.CutPrefix(lines.Bytes(), []byte(name+":")); ok {
			return string(bytes.TrimSpace(value)), nil
		}
	}
	return "", fmt.Errorf("%s has no %s", path, name)
}

// environLimit bounds how much of an environment is read, in bytes. What comes after is left out.
const environLimit = 128 << 10

// Environ returns the environment that process pid was started with, or has made of it since: it lies in the process's
// own memory. That memory may be a file of a file system which does not answer, so this may block for as long as
// that lives.
func Environ(pid int) ([]string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, environLimit))
	if err != nil {
		return nil, err
	}
	whole := bytes.LastIndexByte(data, 0)
	if whole < 0 {
		return nil, nil
	}
	return strings.Split(string(data[:whole]), "\x00"), nil
}

// ShowsProcesses reports whether a procfs, given by its root directory, is the one of process pid's pid namespace: a
// machine may have mounted another one, or none since it got a namespace of its own.
func ShowsProcesses(proc *os.File, pid int) (bool, error) {
	ids, err := statusField(pid, "NSpid")
	if err != nil {
		return false, err
	}
	own := ids[strings.LastIndexByte(ids, '\t')+1:]
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return false, err
	}
	var b [64]byte
	n, err := unix.Readlinkat(int(proc.Fd()), own+"/ns/pid", b[:])
	return err == nil && string(b[:n]) == want, nil
}
