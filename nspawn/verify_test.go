package nspawn

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

func TestInUnit(t *testing.T) {
	for _, c := range []struct {
		name, cgroups, unit string
		want                bool
	}{
		{"payload", "0::/machine.slice/systemd-nspawn@web.service/payload\n", "systemd-nspawn@web.service", true},
		{"scope", "0::/machine.slice/machine-a\\x2db.scope\n", "machine-a\\x2db.scope", true},
		{"nested", "0::/system.slice/m1.service/payload/init.scope\n", "m1.service", true},
		{"escaped", "0::/system.slice/_cpu.service\n", "cpu.service", true},
		{"hybrid", "4:cpu:/\n1:name=systemd:/machine.slice/m.scope\n0::/\n", "m.scope", true},
		{"controller", "4:cpu:/machine.slice/m.scope\n0::/\n", "m.scope", false},
		{"other", "0::/machine.slice/systemd-nspawn@web2.service/payload\n", "systemd-nspawn@web.service", false},
		{"prefix", "0::/m1.service.d/x\n", "m1.service", false},
		{"host", "0::/user.slice/user-0.slice/session-1.scope\n", "m1.service", false},
		{"empty", "", "m1.service", false},
	} {
		if got := inUnit(c.cgroups, c.unit); got != c.want {
			t.Errorf("%s: inUnit(%q, %q) = %v", c.name, c.cgroups, c.unit, got)
		}
	}
}

func TestUsable(t *testing.T) {
	for _, c := range []struct {
		p    properties
		want fail.Code
	}{
		{properties{Class: "container", State: "running", Leader: 7}, ""},
		{properties{Class: "container", State: "opening", Leader: 7}, ""},
		{properties{Class: "container", State: "closing", Leader: 7}, fail.NotRunning},
		{properties{Class: "container", State: "running"}, fail.NotRunning},
		{properties{Class: "vm", State: "running", Leader: 7}, fail.NotAContainer},
		{properties{Class: "host", State: "running", Leader: 1}, fail.NotAContainer},
		{properties{State: "running", Leader: 7}, fail.NotAContainer},
	} {
		err := c.p.usable("web")
		if c.want == "" && err != nil || c.want != "" && !fail.Is(err, c.want) {
			t.Errorf("usable(%+v) = %v, want %q", c.p, err, c.want)
		}
	}
}

// machined since v258 tells the inode number of the leader's pidfd: with it, a number that was used
// again is noticed without asking twice.
func TestVerifyInode(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	leader, err := machine.OpenLeader(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(leader.File.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if err := verifyInode(properties{Name: "web", LeaderPIDFDId: st.Ino}, leader); err != nil {
		t.Errorf("the leader itself: %v", err)
	}
	if err := verifyInode(properties{Name: "web", LeaderPIDFDId: st.Ino + 1}, leader); !fail.Is(err, fail.NotRunning) {
		t.Errorf("another process: %v, want NotRunning", err)
	}
}
