package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Setting is a place where workloads run.
type Setting string

// The settings, in the order of the table's columns.
const (
	Native Setting = "native"
	Bind   Setting = "bind"
	Ours   Setting = "ours"
	URing  Setting = "uring" // ours, with requests over io_uring
	Cntr   Setting = "cntr"
)

// Settings are all of them.
var Settings = [...]Setting{Native, Bind, Ours, URing, Cntr}

// machine is the one that sessions are attached to: booted, without a user namespace.
const machine = "deb"

// command is what starts a program in the setting, with pipes. Our sessions are read-only unless it has to write, as
// they are for everybody.
func (s Setting) command(writes bool, program ...string) []string {
	switch s {
	case Bind:
		return append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `
			root=/run/bench-bind; mkdir -p $root && mount --rbind / $root && exec chroot $root "$@"`, "sh"}, program...)
	case Ours, URing:
		return append([]string{"cntr-attach", "--quiet", "--pipe", fmt.Sprintf("--writable=%t", writes), machine, "--"}, program...)
	case Cntr:
		return append([]string{"sh", "-c", `
			leader=$(machinectl show --property=Leader --value ` + machine + `) || exit
			ulimit -n "$(ulimit -Hn)"
			LD_PRELOAD=` + preload + ` exec cntr attach "$leader" -- "$@"`, "sh"}, program...)
	}
	return program
}

// A worker is a worker process in a setting, as seen by those who tell it what to do.
type worker struct {
	setting Setting
	writes  bool
	device  uint64 // of its root directory
	cmd     *exec.Cmd
	in      io.WriteCloser
	lines   <-chan string
	done    <-chan error
}

// start starts a worker. Program is how it is started by hand: a path that all settings have, and arguments.
func (s Setting) start(writes bool, program ...string) (*worker, error) {
	argv := s.command(writes, program...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + searchPath, "HOME=/root", "LANG=C.UTF-8", "SHELL=/bin/sh"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	log, err := os.CreateTemp("", "bench-stderr-")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	defer os.Remove(log.Name())
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if s == Ours || s == URing {
		restore, err := turnURing(s == URing)
		if err != nil {
			return nil, err
		}
		defer restore() // the session has it by then
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker in %s: %w", s, err)
	}
	lines, done := make(chan string, 16), make(chan error, 1)
	go func() {
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			if _, text, ok := strings.Cut(scanner.Text(), answer); ok {
				select {
				case lines <- strings.TrimSpace(text):
				default: // nobody waits for that many
				}
			}
		}
		close(lines)
		done <- cmd.Wait()
	}()
	w := &worker{setting: s, writes: writes, cmd: cmd, in: in, lines: lines, done: done}
	text, err := w.read(20 * time.Second)
	if err == nil {
		device, ok := strings.CutPrefix(text, "ready ")
		w.device, err = strconv.ParseUint(device, 10, 64)
		if !ok || err != nil {
			err = fmt.Errorf("its first words are %q", text)
		}
	}
	if err != nil {
		w.stop()
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("start a worker in %s: %w\n%s", s, err, said)
	}
	return w, nil
}

// turnURing says whether the kernel offers io_uring to the file systems that are mounted from now on.
func turnURing(on bool) (restore func(), err error) {
	const uring = "/usr/lib/testhost/uring"
	to := map[bool]string{false: "N", true: "Y"}[on]
	before, err := exec.Command(uring, to).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("set FUSE over io_uring to %s: %w\n%s", to, err, before)
	}
	return func() { _ = exec.Command(uring, strings.TrimSpace(string(before))).Run() }, nil
}

var errTimeout = errors.New("no answer in time")

// read waits for an answer.
func (w *worker) read(timeout time.Duration) (string, error) {
	select {
	case text, ok := <-w.lines:
		if !ok {
			return "", errors.New("the worker ended")
		}
		return text, nil
	case <-time.After(timeout):
		return "", errTimeout
	}
}

// A failure is a workload's own error, after which the worker can go on.
type failure string

func (f failure) Error() string { return string(f) }

// do has the worker do one step of a workload, and returns how long that took it.
func (w *worker) do(step, workload, scratch string) (time.Duration, error) {
	_, err := fmt.Fprintf(w.in, "%s %s %s %s\n", step, workload, w.setting.dir(), scratch)
	if err != nil {
		return 0, fmt.Errorf("worker in %s: %w", w.setting, err)
	}
	text, err := w.read(2 * time.Minute)
	if err != nil {
		return 0, fmt.Errorf("worker in %s: %w", w.setting, err)
	}
	if reason, failed := strings.CutPrefix(text, "failed "); failed {
		return 0, failure(reason)
	}
	ns, err := strconv.ParseInt(strings.TrimPrefix(text, "ok "), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("worker in %s: answer %q", w.setting, text)
	}
	return time.Duration(ns), nil
}

// dir is the setting's own directory.
func (s Setting) dir() string { return filepath.Join(dir, "work-"+string(s)) }

// stop ends the worker, and its session with it.
func (w *worker) stop() {
	// A program on a terminal does not see that the pipe behind it was closed, so it is told.
	_, _ = io.WriteString(w.in, "quit\n")
	select {
	case <-w.done:
	case <-time.After(2 * time.Second):
		_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL)
		<-w.done
	}
	w.in.Close()
}
