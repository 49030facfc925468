//go:build integration && vm

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// A command has the SELinux label of the machine, and all that it sees has the label of the machine's files, whether SELinux only watches
// or enforces; with --label=off it has the service's, or the caller's. The policy is Debian's, with packaging/selinux.
func TestCommandHasTheMachinesSELinuxLabel(t *testing.T) {
	const name = "t-selinux"
	const config = "/etc/docker/daemon.json"
	if err := os.WriteFile(config, []byte(`{"bridge": "none", "iptables": false, "ip6tables": false, "selinux-enabled": true}`), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, machineTool, "start", "docker", name, "slim")
	t.Cleanup(func() {
		must(t, "setenforce", "0")
		must(t, machineTool, "stop", "docker", name)
	})
	pid, err := strconv.Atoi(must(t, "docker", "inspect", "--format={{.State.Pid}}", name))
	if err != nil {
		t.Fatal(err)
	}
	const own = "system_u:system_r:initrc_t:s0" // what a service or a test has that executes a program of no domain
	its := string(readFile(t, fmt.Sprintf("/proc/%d/attr/current", pid)))
	its = strings.TrimRight(its, "\x00\n")
	domain, categories, ok := strings.Cut(its, ":s0:")
	if !ok || domain != "system_u:system_r:container_t" {
		t.Fatalf("the machine's label is %q", its)
	}
	files := "system_u:object_r:container_file_t:s0:" + categories
	ref := "docker:" + name
	const show = "tr -d '\\0' </proc/self/attr/current"
	for enforcing, gdb := range []string{"in wait_for_work (", "ptrace: Permission denied"} {
		must(t, "setenforce", strconv.Itoa(enforcing))
		for _, mode := range []string{"--quiet", "--direct", "--strict"} {
			if got := succeeds(t, mode, ref, "sh", "-c", show); got != its {
				t.Errorf("enforcing=%d %s: the command's label is %q, the machine's %q", enforcing, mode, got, its)
			}
			if got := succeeds(t, mode, "--label=off", ref, "sh", "-c", show); got != own {
				t.Errorf("enforcing=%d %s --label=off: the command's label is %q, not %q", enforcing, mode, got, own)
			}
		}
		for _, path := range []string{"/", "/usr/bin/env", "/dev/pts", "/var/lib/cntr", "/var/lib/cntr-private"} {
			if got := succeeds(t, ref, "stat", "--format=%C", path); got != files+"\n" {
				t.Errorf("enforcing=%d: the label of %s is %q", enforcing, path, got)
			}
		}
		if o := attachWith(t, strings.NewReader("to and fro"), ref, "cat"); o.stdout != "to and fro" || o.code != 0 {
			t.Errorf("enforcing=%d: through pipes: %+v", enforcing, o)
		}
		if got := succeeds(t, "--pty", ref, "sh", "-c", "tty; script -qc tty /dev/null"); strings.Count(got, "/dev/pts/") != 2 {
			t.Errorf("enforcing=%d: terminals: %q", enforcing, got)
		}
		if got := succeeds(t, ref, "sh", "-c", "ps -o comm= -p 1; echo x >/tmp/x; cat /tmp/x; ss -Htln | grep -o 127.0.0.1:8080"); got != "slim\nx\n127.0.0.1:8080\n" {
			t.Errorf("enforcing=%d: tools say %q", enforcing, got)
		}
		// What Debian's policy refuses containers, it refuses commands in them.
		debugger := []string{ref, "--", "gdb", "-p", "1", "-batch", "-ex", "bt"}
		if o := attachTo(t, debugger...); !strings.Contains(o.stdout+o.stderr, gdb) {
			t.Errorf("enforcing=%d: gdb: %+v", enforcing, o)
		}
		if out := succeeds(t, append([]string{"--label=off"}, debugger...)...); !strings.Contains(out, "in wait_for_work (") {
			t.Errorf("enforcing=%d: gdb with --label=off: %s", enforcing, out)
		}
	}
	// That policy has a domain for systemd-nspawn, with nothing in it that may be executed.
	must(t, "setenforce", "1")
	if o := attachTo(t, booted, "true"); o.code != 126 || !strings.Contains(o.stderr, "systemd_nspawn_t") || !strings.Contains(o.stderr, "--label=off") {
		t.Errorf("in a machine whose label may execute nothing: %+v", o)
	}
	for _, machine := range machines {
		succeeds(t, "--label=off", machine, "true")
	}
}
