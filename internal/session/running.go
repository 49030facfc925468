package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/units"
)

// Running returns the sessions that run on this host, whoever started them, but for those whose id is known: they are
// found by their scopes, which are all in one slice. The caller closes them.
func (l *Launcher) Running(ctx context.Context, known func(id string) bool) ([]*Session, error) {
	if l.systemd == nil {
		return nil, nil
	}
	slice, err := l.systemd.ControlGroup(ctx, Slice)
	if err != nil || slice == "" {
		return nil, err
	}
	dir, err := cgroupDir(slice)
	if err != nil {
		return nil, err
	}
	scopes, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the last one has just ended
	}
	if err != nil {
		return nil, err
	}
	var running []*Session
	for _, scope := range scopes {
		_, id, ok := units.ParseScopeName(scope.Name())
		if !ok || known(id) {
			continue
		}
		procs, err := os.ReadFile(filepath.Join(dir, scope.Name(), "cgroup.procs"))
		if err != nil {
			continue // ended meanwhile
		}
		for _, field := range strings.Fields(string(procs)) {
			if s := inspect(field); s != nil {
				s.Scope = scope.Name()
				running = append(running, s)
				break
			}
		}
	}
	return running, nil
}

// inspect returns the session whose session process this is, or nil if it is none. What runs in a
// session could give itself any command line, but not the sealed program.
func inspect(pid string) *Session {
	n, err := strconv.Atoi(pid)
	if err != nil || n == 0 { // 0: in a pid namespace that cannot be seen from here
		return nil
	}
	process, err := machine.OpenLeader(n)
	if err != nil {
		return nil
	}
	exe, errExe := os.Readlink("/proc/" + pid + "/exe")
	comm, errComm := os.ReadFile("/proc/" + pid + "/comm") // the reaper has another
	cmdline, errCmd := os.ReadFile("/proc/" + pid + "/cmdline")
	if errExe == nil && errComm == nil && errCmd == nil && process.Alive() &&
		exe == sealedName && string(comm) == programName+"\n" {
		args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		if info, err := parseArguments(args); err == nil {
			info.PID = n
			return &Session{Info: info, Process: process}
		}
	}
	_ = process.Close()
	return nil
}

// Transport says which way the requests of a session's file system come; "" if the session has just ended. A session process
// uses io_uring for nothing else.
func (l *Launcher) Transport(s *Session) string {
	dir := fmt.Sprintf("/proc/%d/fd", s.PID)
	fds, err := os.ReadDir(dir)
	transport := fuse.Device
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && target == "anon_inode:[io_uring]" {
			transport = fuse.URing
			break
		}
	}
	if err != nil || !s.Process.Alive() { // the number may be another's
		return ""
	}
	return string(transport)
}

// Kill sends a signal to all that runs in a session, but not to its session process and reaper.
func (l *Launcher) Kill(s *Session, signal unix.Signal) error {
	cgroup, err := cgroupOf(uint32(s.PID))
	if err != nil || !s.Process.Alive() {
		return fail.New(fail.NoSuchSession, "", "session %s has just ended", s.ID)
	}
	if s.Scope == "" || filepath.Base(cgroup) != s.Scope {
		return fail.New(fail.NotSupported, "terminate it, or send signals by hand", "session %s has no scope", s.ID)
	}
	m := members{cgroup: cgroup}
	if m.dir, err = cgroupDir(cgroup); err != nil {
		return err
	}
	pids, err := m.others()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		process, err := machine.OpenLeader(pid)
		if err != nil {
			continue // ended meanwhile
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && exe != sealedName && m.has(uint32(pid)) && process.Alive() {
			_ = unix.PidfdSendSignal(int(process.File.Fd()), signal, nil, 0) // it may have ended
		}
		_ = process.Close()
	}
	return nil
}

// Terminate ends a session and waits until it has.
func (l *Launcher) Terminate(ctx context.Context, s *Session) error {
	if s.Scope != "" && l.systemd != nil {
		return l.systemd.StopUnit(ctx, s.Scope)
	}
	err := unix.PidfdSendSignal(int(s.Process.File.Fd()), unix.SIGTERM, nil, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ending session %s: %w", s.ID, err)
	}
	limit := time.Duration(-1)
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline)
	}
	if !s.Process.Wait(limit) {
		return fmt.Errorf("ending session %s: %w", s.ID, context.DeadlineExceeded)
	}
	return nil
}

// Close lets go of the descriptors. The session goes on, unless nobody else has its terminal.
func (s *Session) Close() error {
	closeAll(s.Terminal)
	return s.Process.Close()
}
