package testhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNotRunning says that there is no test host to do something in.
var ErrNotRunning = errors.New("the test host is not running\nhint: make testhost-up")

// inside returns a command that runs in all of the test host's namespaces, but, unlike those of
// [Host.Run], in no unit: for short questions.
func (h *Host) inside(ctx context.Context, command ...string) *exec.Cmd {
	args := append([]string{"--target", strconv.Itoa(h.state.Leader.PID), "--all", "--"}, command...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", "LANG=C.UTF-8", "PAGER=cat"}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a program of the caller's in the test host, as a service of its own, and returns its exit
// code, 128 and the number of the signal if one ended it. It is what "go test -exec" wants: the program
// is copied in, it starts in the caller's directory, it has the caller's standard input and output, and
// signals that the caller gets go to it. If it fails, the test host's journal since it started follows
// on standard error.
func (h *Host) Run(ctx context.Context, program string, args []string) (int, error) {
	if !h.Running() {
		return 0, ErrNotRunning
	}
	cwd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	if cwd != h.state.Repo && !strings.HasPrefix(cwd, h.state.Repo+"/") {
		return 0, fmt.Errorf("the test host does not see %s, only %s\nhint: make testhost-down testhost-up here, "+
			"or TESTHOST=name for a second one", cwd, h.state.Repo)
	}
	unit := fmt.Sprintf("testhost-run-%d.service", os.Getpid())
	box := boxed{outside: filepath.Join(h.Root(), "var/lib/testhost", unit), inside: filepath.Join("/var/lib/testhost", unit)}
	defer box.remove()
	if program, err = box.put(program); err != nil {
		return 0, fmt.Errorf("copy the program into the test host: %w", err)
	}
	args, err = box.redirect(args)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	code, err := h.runUnit(ctx, unit, []string{"--pipe", "--working-directory=" + cwd}, append([]string{program}, args...))
	if err := box.fetch(); err != nil {
		return 0, err
	}
	if err != nil || code != 0 {
		h.journalSince(begin)
	}
	return code, err
}

// Shell runs a command in the test host, a shell if there is none, on the caller's terminal if there is
// one.
func (h *Host) Shell(ctx context.Context, terminal bool, command []string) (int, error) {
	if !h.Running() {
		return 0, ErrNotRunning
	}
	if len(command) == 0 {
		command = []string{"/bin/bash", "--login"}
	}
	options := []string{"--pipe"}
	if terminal {
		options = []string{"--pty", "--setenv=TERM=" + os.Getenv("TERM")}
	}
	unit := fmt.Sprintf("testhost-shell-%d.service", os.Getpid())
	return h.runUnit(ctx, unit, append(options, "--working-directory=/root"), command)
}

// runUnit runs a command as a transient service and waits for it.
func (h *Host) runUnit(ctx context.Context, unit string, options, command []string) (int, error) {
	run := []string{
		"systemd-run", "--quiet", "--wait", "--unit=" + unit, "--service-type=exec",
		"--property=TimeoutStopSec=10", "--setenv=HOME=/root",
	}
	run = append(append(run, options...), passedOn(os.Environ())...)
	cmd := h.inside(ctx, append(append(run, "--"), command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return h.signalUnit(unit, syscall.SIGKILL) }
	if !slices.Contains(options, "--pty") {
		// Away from the terminal's process group: a Ctrl-C is for the service, not for systemd-run.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("enter the test host: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if err := h.signalUnit(unit, s.(syscall.Signal)); err != nil {
				h.Log("%v", err)
			}
		case err := <-done:
			if err == nil {
				return 0, nil
			}
			return h.exitCode(unit, err)
		}
	}
}

// exitCode asks systemd how a service ended: systemd-run says 255 for all that signals end. Then it
// forgets the service, which systemd keeps if it failed.
func (h *Host) exitCode(unit string, failure error) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := h.inside(ctx, "systemctl", "show", "--property=ExecMainCode,ExecMainStatus", unit).Output()
	if err != nil {
		return 0, fmt.Errorf("run in the test host: %w", failure)
	}
	code, ok := parseExit(string(out))
	if !ok {
		return 0, fmt.Errorf("run in the test host: %w", failure)
	}
	_ = h.inside(ctx, "systemctl", "reset-failed", unit).Run() // it may not be failed
	return code, nil
}

// parseExit reads the properties ExecMainCode, a CLD_ constant of waitid(2), and ExecMainStatus.
func parseExit(properties string) (code int, ok bool) {
	const exited, killed, dumped = 1, 2, 3
	values := map[string]int{}
	for _, line := range strings.Split(properties, "\n") {
		name, value, _ := strings.Cut(line, "=")
		if n, err := strconv.Atoi(value); err == nil {
			values[name] = n
		}
	}
	switch values["ExecMainCode"] {
	case exited:
		return values["ExecMainStatus"], true
	case killed, dumped:
		return 128 + values["ExecMainStatus"], true
	}
	return 0, false
}

func (h *Host) signalUnit(unit string, s syscall.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := h.inside(ctx, "systemctl", "kill", "--signal="+strconv.Itoa(int(s)), unit).CombinedOutput()
	if err != nil {
		return fmt.Errorf("signal %s: %w: %s", unit, err, out)
	}
	return nil
}

// journalSince prints what all of the test host logged.
func (h *Host) journalSince(begin time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	fmt.Fprintf(os.Stderr, "--- the test host's journal since %s ---\n", begin.Format("15:04:05.000"))
	cmd := h.inside(ctx, "journalctl", "--no-pager", "--output=short-precise", "--lines=2000",
		fmt.Sprintf("--since=@%.6f", float64(begin.UnixMicro())/1e6))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		h.Log("read the journal: %v", err)
	}
	fmt.Fprintln(os.Stderr, "--- end of the journal ---")
}

// passedOn are the options that hand on the part of the environment that is meant for tests.
func passedOn(environ []string) []string {
	var options []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		switch name {
		case "CI", "GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GORACE":
		default:
			if !strings.HasPrefix(name, "CNTR_") && !strings.HasPrefix(name, "TEST_") {
				continue
			}
		}
		options = append(options, "--setenv="+entry)
	}
	return options
}
