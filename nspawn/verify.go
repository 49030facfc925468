package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// verify makes sure that leader, a pidfd just opened by number, holds the leader of the machine, and
// that what it leads is a container.
func verify(ctx context.Context, conn *godbus.Conn, path godbus.ObjectPath, p properties, leader *machine.Leader) error {
	var err error
	if p.LeaderPIDFDId != 0 {
		err = verifyInode(p, leader)
	} else {
		err = verifyAgain(ctx, conn, path, p, leader)
	}
	if err != nil {
		return err
	}
	host, err := machine.SharesWithHost(leader.PID, "mnt")
	// Alive, asked last, vouches for all that was read from /proc by number: while a process lives
	// its number is not given away.
	// A process that is ending has let go of its namespaces before it counts as ended.
	if !leader.Alive() || errors.Is(err, fs.ErrNotExist) {
		return gone(p.Name)
	}
	if err != nil {
		return fmt.Errorf("machine %q: %w", p.Name, err)
	}
	if host {
		return fail.New(fail.NotAContainer, "whoever registered it gave a process of the host as its leader",
			"%q is not a container: its leader, process %d, has the host's mounts", p.Name, leader.PID)
	}
	return nil
}

// verifyInode compares the pidfd's inode number with the one that machined took when the machine
// started. A pidfd has an inode number of its own, never used twice while the system is up, since
// Linux 6.9 (pidfs); machined tells it since v258.
func verifyInode(p properties, leader *machine.Leader) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(leader.File.Fd()), &st); err != nil {
		return fmt.Errorf("machine %q: fstat of a pidfd: %w", p.Name, err)
	}
	if st.Ino != p.LeaderPIDFDId {
		return gone(p.Name)
	}
	return nil
}

// verifyAgain is for a machined that tells only a number: it asks for the leader once more, now that
// the pidfd is open. The same number, and the process that the pidfd holds still alive after the
// answer, mean that the number was this process's all the while. What remains is a machined that has
// not noticed yet that its leader ended; there the process must also be in the machine's unit, where
// only the machine's own processes are.
func verifyAgain(ctx context.Context, conn *godbus.Conn, path godbus.ObjectPath, p properties, leader *machine.Leader) error {
	now, err := propertiesOf(ctx, conn, path)
	if err != nil {
		return goneOr(p.Name, err)
	}
	if now.Name != p.Name || now.Leader != p.Leader || now.State == "closing" {
		return gone(p.Name)
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", leader.PID))
	if !leader.Alive() {
		return gone(p.Name)
	}
	if err != nil {
		return fmt.Errorf("machine %q: %w", p.Name, err)
	}
	if p.Unit != "" && !inUnit(string(cgroups), p.Unit) {
		return gone(p.Name)
	}
	return nil
}

// inUnit reports whether /proc/PID/cgroup puts its process into a unit. With the unified hierarchy
// there is one line, "0::/machine.slice/systemd-nspawn@web.service/payload"; before, one for each
// controller, and systemd's own is "1:name=systemd:/…". systemd puts "_" before a name that could be
// mistaken for a control file.
func inUnit(cgroups, unit string) bool {
	for line := range strings.SplitSeq(cgroups, "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 || (fields[1] != "" && fields[1] != "name=systemd") {
			continue
		}
		for part := range strings.SplitSeq(fields[2], "/") {
			if part == unit || part == "_"+unit {
				return true
			}
		}
	}
	return false
}
