package testhost

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// daemon is the service that the product installs.
const daemon = "cntr-attachd.service"

// Install puts the product into the running test host with make install, as a package would, and has the
// test host notice. A daemon that runs is stopped, so that the next call starts the new one.
func (h *Host) Install(ctx context.Context) error {
	if !h.Running() {
		return ErrNotRunning
	}
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "install", "DESTDIR="+h.Root())
	cmd.Dir = h.state.Repo
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make install: %w", err)
	}
	for _, command := range [][]string{
		{"systemctl", "daemon-reload"},
		{"busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ReloadConfig"},
		{"sh", "-c", "! systemctl --quiet is-active " + daemon + " || systemctl stop " + daemon},
	} {
		if out, err := h.inside(ctx, command...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
		}
	}
	return nil
}

// Status describes the test host for a person.
func (h *Host) Status(ctx context.Context) (text string, running bool) {
	if !h.Running() {
		return h.Name + ": not running", false
	}
	system, _ := h.inside(ctx, "systemctl", "is-system-running").Output()
	machines, _ := h.inside(ctx, "machinectl", "list", "--no-pager").Output()
	return fmt.Sprintf("%s: %s since %s\nsource tree %s\nroot        %s\nleader      %d\n\n%s",
		h.Name, strings.TrimSpace(string(system)), h.state.Started.Format(time.DateTime), h.state.Repo, h.Root(),
		h.state.Leader.PID, strings.TrimRight(string(machines), "\n")), true
}
