//go:build integration

package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestHostToolsDebugASlimMachine(t *testing.T) {
	t.Run("gdb", func(t *testing.T) {
		out := succeeds(t, slim, "--", "gdb", "-p", "1", "-batch", "-ex", "bt")
		for _, want := range []string{
			`in wait_for_work \(.*\) at .*slim\.c:\d+`, `in serve \(.*\) at .*slim\.c:\d+`, `in main \(.*\) at .*slim\.c:\d+`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("no %q in the backtrace:\n%s", want, out)
			}
		}
	})
	t.Run("strace", func(t *testing.T) {
		o := attachTo(t, slim, "timeout", "--preserve-status", "-s", "INT", "2", "strace", "-p", "1")
		if !strings.Contains(o.stderr, "strace: Process 1 attached") || !strings.Contains(o.stderr, "detached") {
			t.Errorf("strace: %+v", o)
		}
	})
	t.Run("tcpdump", func(t *testing.T) { // which wants to be the user tcpdump
		out := succeeds(t, slim, "sh", "-c", `tcpdump -i lo -c 1 -w - 2>/tmp/said & until grep -q listening /tmp/said; do :; done
			timeout 1 curl -s http://127.0.0.1:8080/; wait $!`)
		if !strings.HasPrefix(out, "\xd4\xc3\xb2\xa1") { // the magic number of a capture file
			t.Errorf("got %q", out)
		}
	})
	t.Run("ps", func(t *testing.T) {
		out := succeeds(t, slim, "ps", "-o", "comm=", "-p", "1")
		if strings.TrimSpace(out) != "slim" {
			t.Errorf("process 1 is %q", out)
		}
	})
	t.Run("ls", func(t *testing.T) {
		out := succeeds(t, slim, "ls", "/var/lib/cntr")
		own := must(t, "ls", "/proc/"+must(t, "machinectl", "show", "--property=Leader", "--value", slim)+"/root")
		if strings.TrimSpace(out) != own {
			t.Errorf("got %q, the machine's root has %q", out, own)
		}
	})
	t.Run("hostname", func(t *testing.T) {
		if out := succeeds(t, slim, "hostname"); out != slim+"\n" {
			t.Errorf("got %q", out)
		}
	})
}

func TestAddressesAreTheMachines(t *testing.T) {
	for _, machine := range machines {
		out := succeeds(t, machine, "ip", "-brief", "address")
		inside := must(t, "nsenter", "-n", "-t", must(t, "machinectl", "show", "--property=Leader", "--value", machine),
			"ip", "-brief", "address")
		if strings.TrimSuffix(out, "\n") != inside || !strings.Contains(out, "host0") {
			t.Errorf("%s: got\n%s\nwant\n%s", machine, out, inside)
		}
	}
}

func TestTreeIsReadOnlyUnlessAsked(t *testing.T) {
	t.Cleanup(func() { must(t, "rm", "-f", "/var/tmp/cntr-test") })
	for _, machine := range machines {
		o := attachTo(t, machine, "touch", "/var/tmp/cntr-test")
		if o.code != 1 || !strings.Contains(o.stderr, "Read-only file system") {
			t.Errorf("%s: touch without --writable: %+v", machine, o)
		}
		succeeds(t, "--writable", machine, "sh", "-c", "echo written > /var/tmp/cntr-test")
		if got := must(t, "stat", "-c", "%u:%g", "/var/tmp/cntr-test"); got != "0:0" {
			t.Errorf("%s: the file belongs to %s", machine, got)
		}
		if got := must(t, "cat", "/var/tmp/cntr-test"); got != "written" {
			t.Errorf("%s: the file says %q", machine, got)
		}
		must(t, "rm", "/var/tmp/cntr-test")
	}
}

func TestFilesAreTheMachines(t *testing.T) {
	for _, machine := range machines {
		root := "/proc/" + must(t, "machinectl", "show", "--property=Leader", "--value", machine) + "/root"
		for _, file := range []string{"/etc/passwd", "/etc/group"} {
			own := runCommand(t, nil, "cat", root+file).stdout
			if got := succeeds(t, machine, "cat", file); !strings.HasPrefix(got, own) || strings.Contains(got, ":1000:") {
				t.Errorf("%s: %s is\n%s\nand the machine's is\n%s", machine, file, got, own)
			}
		}
		for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
			own := runCommand(t, nil, "cat", root+file)
			if own.code != 0 {
				continue // it has none
			}
			if got := attachTo(t, machine, "cat", file); got != own {
				t.Errorf("%s: %s is %+v, the machine's is %+v", machine, file, got, own)
			}
		}
	}
	if got := succeeds(t, slim, "whoami"); got != "root\n" {
		t.Errorf("whoami in a machine without /etc/passwd: %q", got)
	}
	marker := "/run/cntr-marker"
	must(t, "systemd-run", "--quiet", "--wait", "--machine="+booted, "touch", marker)
	succeeds(t, booted, "test", "-e", marker)
	succeeds(t, booted, "test", "-e", "/var/lib/cntr"+marker)
	succeeds(t, booted, "rm", marker)
}

func TestUsersAreTheMachines(t *testing.T) {
	must(t, "systemd-run", "--quiet", "--wait", "--machine="+booted, "sh", "-c",
		"id tester || useradd --uid 4711 --user-group --groups games tester")
	if got := succeeds(t, "--user=tester", booted, "sh", "-c", "id -u; id -Gn; echo $USER $HOME"); got !=
		"4711\ntester games\ntester /home/tester\n" {
		t.Errorf("got %q", got)
	}
	if got := succeeds(t, "--user=33", slim, "id", "-u"); got != "33\n" {
		t.Errorf("got %q", got)
	}
	o := attachTo(t, "--user=nobody-such", booted, "id")
	if o.code != 125 || !strings.Contains(o.stderr, `the machine has no user "nobody-such"`) {
		t.Errorf("an unknown user: %+v", o)
	}
}

func TestEnvironmentAndDirectory(t *testing.T) {
	t.Setenv("HISTFILE", "/root/secret")
	out := succeeds(t, "-E", "COLOUR=red", booted, "env")
	for _, want := range []string{"COLOUR=red\n", "CNTR_MACHINE=nspawn:deb\n", "USER=root\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "HISTFILE") {
		t.Errorf("HISTFILE was passed on:\n%s", out)
	}
	if got := succeeds(t, "--chdir=/usr/share", booted, "pwd"); got != "/usr/share\n" {
		t.Errorf("--chdir: %q", got)
	}
	o := attachTo(t, "--chdir=/no/such", booted, "pwd")
	if o.code != 125 || !strings.Contains(o.stderr, `"/no/such"`) {
		t.Errorf("a directory that is not there: %+v", o)
	}
	t.Chdir("/usr/lib")
	if got := succeeds(t, booted, "pwd"); got != "/usr/lib\n" {
		t.Errorf("the caller's directory: %q", got)
	}
	t.Chdir("/run/systemd")
	if got := succeeds(t, slim, "pwd"); got != "/\n" {
		t.Errorf("a caller's directory that the machine does not have: %q", got)
	}
}
