//go:build integration

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// From the moment that they can be seen, a machine's root tries to get hold of all processes of sessions: with ptrace
// (CVE-2016-9962, CVE-2016-8649), through /proc/PID/exe (CVE-2019-5736), and in all other ways that there are.
func TestMachineGrabsProcesses(t *testing.T) {
	protected := shielded(t)
	makeSecret(t)
	before := must(t, "sh", "-c", "cat /usr/bin/sleep /usr/lib/cntr-attach/* | sha256sum")
	for _, machine := range machines[:2] { // the slim one has no program to try with
		t.Run(machine, func(t *testing.T) {
			attacker := attack(t, machine, "grab")
			for i := range 8 {
				mode := []string{"--writable", "--direct", "--strict", "--user=33"}[i%4]
				// By its typed name, for which there is more patience: the attacker leaves little of the processors.
				o := attachTo(t, mode, "nspawn:"+machine, "sleep", "0.05")
				// Whoever can ptrace can also disturb, and so can who tries to open the program for writing meanwhile.
				if o.code != 0 && (protected || o.code != 137 && !strings.Contains(o.stderr, "text file busy")) {
					t.Errorf("%s: %+v", mode, o)
				}
			}
			got := map[string]string{}
			for _, line := range attacker.stop() {
				name, what, _ := strings.Cut(line, ":")
				got[name] = strings.TrimSpace(what)
			}
			if _, ok := got["sleep"]; !ok {
				t.Fatalf("the attacker did not see the command: %q", got)
			}
			for name, what := range got {
				switch {
				case protected, machine == userns && name != "sleep":
					// Either there is a shield, or these are processes of the host's user namespace.
					if (strings.HasPrefix(name, "cntr-") || name == "sleep") && what != "" {
						t.Errorf("%s: the machine succeeded with %s", name, what)
					}
				case strings.HasPrefix(name, "cntr-") || name == "sleep":
					// Without a shield, who may ptrace gets at the process, but the file server gives nothing out. (A reaper's
					// root directory is the machine's for a moment.)
					for _, never := range []string{"reading the host", "writing to the host", "writing exe"} {
						if strings.Contains(what, never) {
							t.Errorf("%s: the machine succeeded with %s", name, what)
						}
					}
					t.Logf("%s: without a shield, the machine succeeded with %s", name, what)
				}
			}
			nothingIsLeft(t)
		})
	}
	if after := must(t, "sh", "-c", "cat /usr/bin/sleep /usr/lib/cntr-attach/* | sha256sum"); after != before {
		t.Error("a program of the host was changed")
	}
}

// The root of a machine is what it was before while a session is there, above all where it is the host's root: it has the
// same capabilities, devices and mounts, and reaches the same of the host.
func TestMachineGainsNothing(t *testing.T) {
	makeSecret(t)
	const probe = `grep -E 'Cap|Seccomp|NoNew' /proc/self/status; ls /sys/class/net; wc -l </proc/self/mountinfo
		find /dev -path /dev/pts -prune -o -exec stat -c '%n %F %t:%T %a %u:%g' {} + | sort
		for what in root cwd; do for p in /proc/[0-9]*; do cat $p/$what/root/cntr-secret $p/$what/cntr-secret; done; done 2>/dev/null | wc -c
		for f in /proc/kcore /proc/kmsg /proc/sys/kernel/core_pattern /sys/kernel/uevent_helper /proc/sysrq-trigger /dev/fuse /dev/mem; do
			test -r $f; r=$?; test -w $f; echo $f $r $?
		done
		rm -f /tmp/disk; mknod /tmp/disk b 254 0 2>/dev/null; echo mknod $?; head -c1 /tmp/disk >/dev/null 2>&1; echo disk $?; rm -f /tmp/disk
		ls -d /proc/[0-9]*/ns/mnt >/dev/null; for p in /proc/[0-9]*; do nsenter --mount=$p/ns/mnt cat /root/cntr-secret; done 2>/dev/null | wc -c`
	for _, machine := range machines[:2] {
		look := func() string {
			return must(t, "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--machine="+machine, "sh", "-c", probe)
		}
		before := look()
		r, _ := sleeper(t, "--writable", machine)
		if during := look(); during != before {
			t.Errorf("%s: before\n%s\nduring a session\n%s", machine, before, during)
		}
		_ = r.cmd.Process.Kill()
		nothingIsLeft(t)
		if after := look(); after != before {
			t.Errorf("%s: before\n%s\nafter a session\n%s", machine, before, after)
		}
		if !strings.Contains(before, "CapEff") || !strings.Contains(before, "mknod ") {
			t.Errorf("%s: the machine could not look: %s", machine, before)
		}
	}
}

// A machine's root can send signals to what runs in it, as its init must be able to. That ends or stops sessions, within
// bounds, and nothing else.
func TestMachineSendsSignals(t *testing.T) {
	inside := func(t *testing.T, pid int) string {
		ids := strings.Fields(field(t, string(readFile(t, fmt.Sprintf("/proc/%d/status", pid))), "NSpid"))
		return ids[len(ids)-1]
	}
	for _, machine := range machines[:2] {
		for _, test := range []struct {
			signal, to string
			code       int
			stderr     string
		}{
			{"KILL", "sleep", 137, ""},
			{"TERM", "sleep", 143, ""},
			{"KILL", "cntr-reaper", 125, "killed"},
		} {
			t.Run(machine+" "+test.signal+" "+test.to, func(t *testing.T) {
				r, scope := sleeper(t, machine)
				var ids []string
				for _, pid := range processes(t, scope) {
					if comm := string(readFile(t, fmt.Sprintf("/proc/%d/comm", pid))); comm == test.to+"\n" {
						ids = append(ids, inside(t, pid))
					}
				}
				kill := runCommand(t, nil, append([]string{
					"systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--machine=" + machine, "sh", "-c",
					`kill -` + test.signal + ` "$@"`, "sh",
				}, ids...)...)
				if machine == userns && test.to == "cntr-reaper" {
					// It is of the host's user namespace.
					if kill.code == 0 {
						t.Errorf("the machine could send a signal to the reaper")
					}
					return
				}
				if kill.code != 0 {
					t.Fatalf("kill: %+v", kill)
				}
				if code := r.exit(5 * time.Second); code != test.code || !strings.Contains(r.stderr.String(), test.stderr) {
					t.Errorf("exit status %d, %s", code, &r.stderr)
				}
				nothingIsLeft(t)
			})
		}
	}
}

// A machine that stops the processes of a session does not keep anybody in it.
func TestMachineStopsProcesses(t *testing.T) {
	r, scope := sleeper(t, booted)
	for _, pid := range processes(t, scope) {
		if comm := string(readFile(t, fmt.Sprintf("/proc/%d/comm", pid))); comm != "cntr-session\n" {
			ids := strings.Fields(field(t, string(readFile(t, fmt.Sprintf("/proc/%d/status", pid))), "NSpid"))
			must(t, "systemd-run", "--quiet", "--wait", "--collect", "--machine="+booted,
				"sh", "-c", "kill -STOP "+ids[len(ids)-1])
		}
	}
	if err := r.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := r.exit(10 * time.Second); code != 143 {
		t.Errorf("exit status %d, %s", code, &r.stderr)
	}
	nothingIsLeft(t)
}

// A leader that ends at any moment of an attach, and whose number may be somebody else's by then, gives an answer at once.
func TestMachineSwapsItsLeader(t *testing.T) {
	for i := range 16 {
		machine := oddMachine(t, func(string) {})
		pid, err := strconv.Atoi(strings.TrimPrefix(machine, "pid:"))
		if err != nil {
			t.Fatal(err)
		}
		mode := []string{"--quiet", "--direct"}[i%2]
		r := start(t, mode, machine, "sleep", "1000")
		// Some of them hit before it is resolved, some while it is entered, some after.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(i) * 5e6}, nil)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := r.exit(5 * time.Second); code != 125 || !strings.Contains(r.stderr.String(), "cntr-attach: ") {
			t.Errorf("killed after %d ms: exit status %d, %s", i*5, code, &r.stderr)
		}
	}
	nothingIsLeft(t)
}

// A working directory that names a descriptor (CVE-2024-21626) finds none.
func TestWorkingDirectoryIsNoDescriptor(t *testing.T) {
	for fd := range 24 {
		dir := fmt.Sprintf("/proc/self/fd/%d", fd)
		o := attachTo(t, []string{"--quiet", "--direct"}[fd%2], "--chdir="+dir, booted, "readlink", "/proc/self/cwd")
		if o.code != 125 || !strings.Contains(o.stderr, dir) {
			t.Errorf("%s: %+v", dir, o)
		}
	}
}

// A command that types into its terminal (TIOCSTI, CVE-2017-5226) types into its own.
func TestCommandTypesIntoItsOwnTerminal(t *testing.T) {
	c := openConsole(t, booted, "python3", "-c", `
import fcntl, os, termios
for fd in 0, 1, 2, os.open("/dev/tty", os.O_RDWR):
    for byte in b"typed\n":
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte]))
        except OSError:
            pass
print("tried")`)
	c.expect("tried")
	if code := c.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	n, err := unix.IoctlGetInt(int(c.slave.Fd()), unix.TIOCINQ)
	if err != nil || n != 0 {
		t.Errorf("%d bytes wait in the caller's terminal, %v", n, err)
	}
}

// In a machine of root's, whoever has the uid 1000 there can make a user namespace, over which the host's user 1000 has all
// rights: but none over the machine's other namespaces, and so the process is not that user's own machine.
func TestProcessInARootsMachineIsNoUsersOwn(t *testing.T) {
	name := strconv.FormatInt(time.Now().UnixNano(), 36)
	r := startCommand(t, "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--machine="+booted, "--unit="+name, "sh", "-c",
		"setpriv --reuid=1000 --regid=1000 --clear-groups unshare --user --map-root-user sh -c 'echo ready; read end'")
	defer r.stdin.Close()
	if got := r.line(); got != "ready" {
		t.Fatalf("got %q: %s", got, &r.stderr)
	}
	var pid string
	for _, link := range glob(t, "/proc/[0-9]*/uid_map") {
		its := filepath.Dir(link)
		if cgroup, _ := os.ReadFile(its + "/cgroup"); !strings.Contains(string(cgroup), name) {
			continue
		}
		if uids, _ := os.ReadFile(link); strings.Join(strings.Fields(string(uids)), " ") == "0 1000 1" {
			pid = filepath.Base(its)
		}
	}
	if pid == "" {
		t.Fatal("nobody has made a user namespace")
	}
	o := runCommand(t, nil, "runuser", "-u", "alice", "--", "cntr-attach", "--no-ask-password", "pid:"+pid, "true")
	if o.code != 125 || !strings.Contains(o.stderr, "org.cntr.Attach1.attach") {
		t.Errorf("got %+v", o)
	}
	// A process of alice's own, in a user namespace that she made here, is hers.
	own := startCommand(t, "runuser", "-u", "alice", "--", "unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; echo $$; read end")
	defer own.stdin.Close()
	if got := own.line(); got != "ready" {
		t.Fatalf("got %q: %s", got, &own.stderr)
	}
	if o := runCommand(t, nil, "runuser", "-u", "alice", "--", "cntr-attach", "--no-ask-password", "pid:"+own.line(), "true"); o.code != 0 {
		t.Errorf("got %+v", o)
	}
}
