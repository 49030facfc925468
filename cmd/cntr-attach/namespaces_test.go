//go:build integration

package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestSessionIsInTheMachinesNamespaces(t *testing.T) {
	for _, machine := range machines {
		for _, mode := range [][]string{nil, {"--direct"}} {
			t.Run(machine+strings.Join(mode, ""), func(t *testing.T) {
				leader := leaderOf(t, machine)
				mountinfo := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", leader))

				out := succeeds(t, append(mode, machine, "id", "-u")...)
				if out != "0\n" {
					t.Errorf("id -u is %q", out)
				}
				r := start(t, append(mode, machine, "sh", "-c",
					"for n in pid net ipc uts cgroup user mnt; do readlink /proc/self/ns/$n; done; read end")...)
				for _, kind := range []string{"pid", "net", "ipc", "uts", "cgroup", "user", "mnt"} {
					its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", leader, kind))
					if err != nil {
						t.Fatal(err)
					}
					if got := r.line(); (got == its) != (kind != "mnt") {
						t.Errorf("%s: the session is in %s, the machine in %s", kind, got, its)
					}
				}
				if now := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", leader)); !bytes.Equal(now, mountinfo) {
					t.Errorf("the machine's mounts changed during the session:\nbefore\n%s\nduring\n%s", mountinfo, now)
				}
				if _, err := r.stdin.Write([]byte("end\n")); err != nil {
					t.Fatal(err)
				}
				if code := r.exit(runTimeout); code != 0 {
					t.Errorf("exit status %d: %s", code, &r.stderr)
				}
				if now := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", leader)); !bytes.Equal(now, mountinfo) {
					t.Errorf("the machine's mounts changed by the session:\nbefore\n%s\nafter\n%s", mountinfo, now)
				}
			})
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSessionInAUserNamespaceIsNobodyOnTheHost(t *testing.T) {
	r, scope := sleeper(t, userns)
	hostUser, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range processes(t, scope) {
		status := string(readFile(t, fmt.Sprintf("/proc/%d/status", pid)))
		name, _, _ := strings.Cut(status, "\n")
		switch strings.TrimPrefix(name, "Name:\t") {
		case "cntr-session": // the host's side of the session
		case "cntr-reaper":
			if !strings.Contains(status, "\nCapPrm:\t0000000000000020\n") || // CAP_KILL
				!strings.Contains(status, "\nCapInh:\t0000000000000000\n") {
				t.Errorf("the reaper has other capabilities than CAP_KILL:\n%s", status)
			}
		default:
			// A process has capabilities in its own user namespace and those below, in no other.
			user, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
			if err != nil {
				t.Fatal(err)
			}
			if user == hostUser {
				t.Errorf("%s is in the host's user namespace", name)
			}
			if strings.Contains(status, "\nUid:\t0\t") {
				t.Errorf("%s is the host's root:\n%s", name, status)
			}
		}
	}
	_ = r.cmd.Process.Kill()
	// What needs a capability of the host must fail, for the session's root as for the machine's.
	for _, attempt := range []string{
		"mount -t tmpfs tmpfs /tmp", "mknod /tmp/sda b 8 0", "date --set=@0",
		"echo h > /proc/sysrq-trigger",
	} {
		if o := attachTo(t, userns, "sh", "-c", attempt); o.code == 0 {
			t.Errorf("%q succeeded: %+v", attempt, o)
		}
	}
}

// The machine's own processes must not see the tools tree, nor be able to get at it.
func TestToolsTreeIsOutOfTheMachinesReach(t *testing.T) {
	for _, machine := range machines[:2] { // the slim one has no program to try with
		t.Run(machine, func(t *testing.T) {
			secret := "/root/cntr-secret"
			if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(secret) })
			_, scope := sleeper(t, "--writable", machine)
			if got := succeeds(t, machine, "cat", secret); got != "of the host" {
				t.Fatalf("the session itself cannot read it: %q", got)
			}
			var inside []string // process ids as the machine sees them
			for _, pid := range processes(t, scope) {
				for line := range strings.Lines(string(readFile(t, fmt.Sprintf("/proc/%d/status", pid)))) {
					if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
						if f := strings.Fields(ids); len(f) > 1 {
							inside = append(inside, f[len(f)-1])
						}
					}
				}
			}
			if len(inside) < 2 {
				t.Fatalf("the machine should see the reaper and the command: %q", inside)
			}
			slices.Sort(inside)
			for _, pid := range inside {
				for _, attempt := range []string{
					"cat /proc/" + pid + "/root" + secret, "ls /proc/" + pid + "/root/", "cat /proc/" + pid + "/cwd" + secret,
					"echo x > /proc/" + pid + "/exe", "cat /proc/" + pid + "/root/bin/sh",
					"/proc/" + pid + "/root/usr/bin/id",
					"echo x > /proc/" + pid + "/root/root/new", "echo x > /proc/" + pid + "/root" + secret,
					"mkdir /proc/" + pid + "/root/root/new", "ln -s x /proc/" + pid + "/root/root/new",
					"rm /proc/" + pid + "/root" + secret, "mv /proc/" + pid + "/root" + secret + " /proc/" + pid + "/root/root/new",
					"chmod 777 /proc/" + pid + "/root" + secret, "truncate -s 0 /proc/" + pid + "/root" + secret,
					"ln /proc/" + pid + "/root" + secret + " /proc/" + pid + "/root/root/new",
				} {
					o := runCommand(t, nil, "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--machine="+machine,
						"sh", "-c", attempt)
					if o.code == 0 || strings.Contains(o.stdout, "of the host") {
						t.Errorf("the machine's root could %q: %+v", attempt, o)
					}
				}
			}
			if got := string(readFile(t, secret)); got != "of the host" {
				t.Errorf("the file now says %q", got)
			}
		})
	}
}

// field returns a field of a /proc/PID/status.
func field(t *testing.T, status, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(status, "\n"+name+":\t")
	if !ok {
		t.Fatalf("no %s in\n%s", name, status)
	}
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

// capabilities returns the bounding set in a /proc/PID/status.
func capabilities(t *testing.T, status string) uint64 {
	t.Helper()
	set, err := strconv.ParseUint(field(t, status, "CapBnd"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
