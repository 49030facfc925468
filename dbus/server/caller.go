package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
)

// caller is who has sent a message, as the bus knows it.
type caller struct {
	name        string // unique name on the bus
	uid         uint32
	groups      []uint32 // all, the primary one among them; nil where the bus does not tell
	primary     uint32   // one of them
	interactive bool     // the message lets somebody be asked for a password
}

func (c caller) trusted() bool { return c.uid == 0 || int(c.uid) == os.Geteuid() }

// quiet is the caller, of whom no password is asked.
func (c caller) quiet() caller {
	c.interactive = false
	return c
}

// owns reports whether a session is the caller's.
func (c caller) owns(e *entry) bool { return c.trusted() || c.uid == e.Owner }

// caller asks the bus for the identity of who sent m. It is that of the moment when they connected:
// nothing that they do later changes it, and their unique name is never used again.
func (s *server) caller(ctx context.Context, m *message) (caller, error) {
	c := caller{name: sender(m), interactive: m.Flags&godbus.FlagAllowInteractiveAuthorization != 0}
	reply, err := s.conn.ask(ctx, busCall("GetConnectionCredentials", []any{c.name}))
	if err != nil {
		return c, err
	}
	defer reply.close()
	var credentials map[string]godbus.Variant
	if err := godbus.Store(reply.Body, &credentials); err != nil {
		return c, err
	}
	uid, known := credentials["UnixUserID"].Value().(uint32)
	if !known {
		return c, fmt.Errorf("the bus does not know who %s is", c.name)
	}
	c.uid = uid
	c.groups, _ = credentials["UnixGroupIDs"].Value().([]uint32)
	if len(c.groups) > 0 {
		c.primary = c.primaryGroup(reply, credentials)
	}
	return c, nil
}

// primaryGroup finds out which of the caller's groups is for what they create. The bus tells all of them, in no order. The
// process that connected knows, if it is still there: it is taken at its word, as it could choose any of its groups.
func (c caller) primaryGroup(reply *message, credentials map[string]godbus.Variant) uint32 {
	var process *machine.Leader
	var err error
	if index, ok := credentials["ProcessFD"].Value().(godbus.UnixFDIndex); ok && reply.file(index) != nil {
		// A pidfd that the bus has held since they connected (dbus 1.15.8): the very process.
		process, err = machine.HoldLeader(reply.file(index))
	} else {
		pid, _ := credentials["ProcessID"].Value().(uint32)
		process, err = machine.OpenLeader(int(pid))
	}
	if err == nil {
		defer process.Close()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.PID))
		uid, gid, ok := effective(status)
		if err == nil && process.Alive() && ok && uid == c.uid && slices.Contains(c.groups, gid) {
			return gid
		}
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err == nil {
		for line := range strings.Lines(string(passwd)) {
			f := strings.Split(line, ":")
			if len(f) < 4 || f[2] != strconv.FormatUint(uint64(c.uid), 10) {
				continue
			}
			if gid, err := strconv.ParseUint(f[3], 10, 32); err == nil && slices.Contains(c.groups, uint32(gid)) {
				return uint32(gid)
			}
		}
	}
	return c.groups[0]
}

// effective returns the effective ids in a /proc/PID/status (proc_pid_status(5)).
func effective(status []byte) (uid, gid uint32, ok bool) {
	found := 0
	for line := range bytes.Lines(status) {
		f := bytes.Fields(line)
		if len(f) < 3 {
			continue
		}
		id, err := strconv.ParseUint(string(f[2]), 10, 32)
		switch string(f[0]) {
		case "Uid:":
			uid = uint32(id)
		case "Gid:":
			gid = uint32(id)
		default:
			continue
		}
		if err != nil {
			return 0, 0, false
		}
		found++
	}
	return uid, gid, found == 2
}

// forSession returns for whom a session of the caller's is: nil if that is root. Without all groups, a file that one of
// them may not read (mode 604) could be read.
func (c caller) forSession() (*session.Caller, error) {
	if c.trusted() {
		return nil, nil
	}
	if len(c.groups) == 0 {
		return nil, fail.New(fail.NotSupported, "run it as root", "this bus does not tell the groups of its users")
	}
	one := &session.Caller{UID: c.uid, GID: c.primary}
	for _, gid := range c.groups {
		if gid != c.primary {
			one.Groups = append(one.Groups, gid)
		}
	}
	return one, nil
}
