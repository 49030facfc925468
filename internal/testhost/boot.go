package testhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// start starts systemd-nspawn on the tree and returns when the test host's first process exists. Both
// processes are in the state file as soon as they are known, so that [Host.Down] finds them even if this
// process is killed in between.
func (h *Host) start(ctx context.Context) error {
	notify, err := listenNotify(filepath.Join(h.dir, "notify"))
	if err != nil {
		return err
	}
	defer notify.Close()

	args, err := h.nspawnArgs()
	if err != nil {
		return err
	}
	var groups []string
	if !systemdRuns() {
		if groups, err = makeControlGroups(h.Name); err != nil {
			return err
		}
	}
	console, err := os.Create(filepath.Join(h.dir, "console.log"))
	if err != nil {
		return err
	}
	defer console.Close()

	// The shell moves itself into the control groups, and becomes systemd-nspawn only when it is told
	// that its number is on record: a line on standard input, after the fork and before the exec.
	const script = `groups=$1; shift
		read -r recorded
		for procs in $groups; do echo $$ >"$procs" || exit 1; done
		exec "$@" </dev/null`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", strings.Join(groups, " ")}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(),
		"NOTIFY_SOCKET="+notify.LocalAddr().String(),
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
		// systemd as process 1 mounts and writes to sysfs and procfs as on a real host.
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",
	)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives this process and its terminal
	gate, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start systemd-nspawn: %w", err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()

	if h.state.Supervisor, err = identify(cmd.Process.Pid); err != nil {
		return err
	}
	if err := h.save(); err != nil {
		return err
	}
	if _, err := io.WriteString(gate, "recorded\n"); err != nil {
		return err
	}
	messages := readNotify(notify)
	leader, err := waitMessage(ctx, messages, gone, "X_NSPAWN_LEADER_PID=")
	if err != nil {
		return fmt.Errorf("wait for the test host's first process: %w\n%s", err, tail(h.console(), 30))
	}
	pid, err := strconv.Atoi(leader)
	if err != nil {
		return fmt.Errorf("systemd-nspawn's word on its leader: %w", err)
	}
	if h.state.Leader, err = identify(pid); err != nil {
		return err
	}
	if err := h.save(); err != nil {
		return err
	}
	// Sent by the test host's systemd when it has started what it starts at boot.
	if _, err := waitMessage(ctx, messages, gone, "READY=1"); err != nil {
		return h.bootFailure(ctx, err)
	}
	return nil
}

// nspawnArgs is the command that boots the tree: a container that may do all that its host may, so that
// what runs in it meets the kernel as it would on a computer of its own.
func (h *Host) nspawnArgs() ([]string, error) {
	args := []string{
		"systemd-nspawn", "--quiet", "--boot", "--notify-ready=yes", "--directory=" + h.Root(), "--machine=testhost-" + h.Name,
		"--register=no", "--private-network", "--private-users=no", "--capability=all", "--system-call-filter=@known",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no",
		"--bind=/dev/fuse", "--bind-ro=" + h.state.Repo,
	}
	if systemdRuns() {
		// The scope that it asks for would keep the machines from making device nodes.
		args = append(args, "--property=DeviceAllow=char-* rwm", "--property=DeviceAllow=block-* rwm")
	} else {
		args = append(args, "--keep-unit")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, fmt.Errorf("%w\nhint: modprobe fuse", err)
	}
	if _, err := os.Stat("/dev/loop-control"); err == nil {
		args = append(args, "--bind=/dev/loop-control")
	}
	return args, nil
}

// listenNotify opens a socket for sd_notify(3).
func listenNotify(path string) (*net.UnixConn, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
}

// readNotify sends on the lines that come in, until the socket is closed.
func readNotify(socket *net.UnixConn) <-chan string {
	lines := make(chan string, 64)
	go func() {
		defer close(lines)
		buf := make([]byte, 4096)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			for _, line := range strings.Split(string(buf[:n]), "\n") {
				select {
				case lines <- line:
				default: // nobody waits for more
				}
			}
		}
	}()
	return lines
}

// waitMessage waits for a line that starts with prefix, and returns the rest of it.
func waitMessage(ctx context.Context, lines <-chan string, gone <-chan error, prefix string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return "", errors.New("the notification socket was closed")
			}
			if rest, found := strings.CutPrefix(line, prefix); found {
				return rest, nil
			}
		case err := <-gone:
			return "", fmt.Errorf("systemd-nspawn ended: %w", err)
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// waitRunning waits until the test host and the machines in it have started all their units, and fails if
// one has failed.
func (h *Host) waitRunning(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	out, err := h.inside(waiting, "sh", "-c", `
		systemctl is-system-running --wait &&
		for machine in deb debu; do systemctl --machine=$machine is-system-running --wait || exit; done`).CombinedOutput()
	if err != nil {
		return h.bootFailure(ctx, fmt.Errorf("%w\n%s", err, out))
	}
	return nil
}

// bootFailure adds what the test host itself says about a boot that failed.
func (h *Host) bootFailure(ctx context.Context, err error) error {
	// The caller's time may be up; these are quick.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	report, _ := h.inside(ctx, "sh", "-c", `
		echo 'waiting jobs:'; systemctl list-jobs --no-legend
		echo 'failed units:'; failed=$(systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1); echo "$failed"
		for unit in $failed; do journalctl --no-pager --lines=20 --unit="$unit"; done
		echo 'the journal:'; journalctl --no-pager --lines=40`).CombinedOutput()
	return fmt.Errorf("boot the test host: %w\n%s", err, report)
}
