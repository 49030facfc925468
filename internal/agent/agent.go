// Package agent has polkit's questions for a password asked on this terminal, as systemctl and machinectl do: it runs
// pkttyagent(1) as long as a call may need it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Agent is a running pkttyagent. Nil is none.
type Agent struct{ cmd *exec.Cmd }

// startLimit bounds the start of the agent.
const startLimit = 10 * time.Second

// Start starts an agent for this process and returns when it is there to be asked. It returns nil where there is nobody
// to ask: for root, who needs no password, without a terminal, and where polkit's agent is not installed.
func Start(ctx context.Context) (*Agent, error) {
	if unix.Geteuid() == 0 || !isTerminal(os.Stdin) || !isTerminal(os.Stderr) {
		return nil, nil
	}
	program, err := exec.LookPath("pkttyagent")
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ready, notify, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	args := []string{"--notify-fd", "3", "--process", strconv.Itoa(os.Getpid())}
	if os.Getenv("XDG_SESSION_ID") != "" {
		// The agent of a graphical session goes first. Outside of sessions, polkit (126) asks no such agent.
		args = append(args, "--fallback")
	}
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{notify}
	err = cmd.Start()
	_ = notify.Close()
	if err != nil {
		return nil, fmt.Errorf("starting pkttyagent: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })()
	_ = ready.SetReadDeadline(time.Now().Add(startLimit))
	// It closes the descriptor when it is registered, or has failed to, which it tells itself.
	_, _ = ready.Read(make([]byte, 1))
	return &Agent{cmd}, nil
}

// Stop ends the agent and has it put the terminal back in order.
func (a *Agent) Stop() {
	if a == nil {
		return
	}
	_ = a.cmd.Process.Signal(unix.SIGTERM)
	_ = a.cmd.Process.Signal(unix.SIGCONT)
	_ = a.cmd.Wait()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
