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
	t.Run("gdb on a program of the host", func(t *testing.T) {
		out := succeeds(t, slim, "--", "gdb", "-batch", "-ex", "catch syscall exit_group", "-ex", "run", "-ex", "bt", "/bin/true")
		if !strings.Contains(out, "_exit (status=") { // its name comes from the host's separate debug information
			t.Errorf("got %s", out)
		}
	})
	t.Run("gdb with separate debug information", func(t *testing.T) {
		for _, machine := range machines[:2] { // of the same Debian as the host
			out := succeeds(t, machine, "--", "gdb", "-p", "1", "-batch", "-ex", "bt")
			if !regexp.MustCompile(`in epoll_wait \(epfd=`).MatchString(out) {
				t.Errorf("%s: no arguments of epoll_wait in\n%s", machine, out)
			}
		}
	})
	t.Run("gdbserver", func(t *testing.T) {
		out := succeeds(t, slim, "sh", "-c", `gdbserver --once localhost:2345 /bin/true 2>/tmp/said & until grep -q Listening /tmp/said; do :; done
			gdb -batch -ex 'target remote localhost:2345' -ex 'info inferiors' -ex kill 2>/dev/null`)
		if !strings.Contains(out, "(Remote target)") && !strings.Contains(out, "remote") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("strace of a program of the host", func(t *testing.T) {
		for _, machine := range machines {
			o := attachTo(t, machine, "strace", "-f", "-e", "trace=openat", "cat", "/etc/hostname")
			if o.code != 0 || !strings.Contains(o.stderr, `openat(AT_FDCWD, "/etc/hostname", O_RDONLY) = 3`) {
				t.Errorf("%s: %+v", machine, o)
			}
		}
	})
	t.Run("ltrace", func(t *testing.T) {
		o := attachTo(t, slim, "timeout", "--preserve-status", "-s", "INT", "1", "ltrace", "-p", "1")
		if strings.Contains(o.stderr, "annot attach") || o.code > 1 && o.code != 130 {
			t.Errorf("got %+v", o)
		}
	})
	t.Run("perf", func(t *testing.T) {
		for _, machine := range machines {
			o := attachTo(t, machine, "perf", "stat", "-x,", "-e", "page-faults:u", "true")
			if o.code != 0 || !regexp.MustCompile(`(?m)^[1-9]\d*,,page-faults(:u)?,`).MatchString(o.stderr) {
				t.Errorf("%s: %+v", machine, o)
			}
		}
	})
	t.Run("lsof", func(t *testing.T) {
		if out := succeeds(t, slim, "lsof", "-p", "1"); !strings.Contains(out, " txt    REG ") || !strings.Contains(out, "/usr/bin/slim") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("ss", func(t *testing.T) {
		if out := succeeds(t, slim, "--", "ss", "-tlnp"); !strings.Contains(out, `127.0.0.1:8080`) || !strings.Contains(out, `(("slim",pid=1,`) {
			t.Errorf("got %s", out)
		}
	})
	t.Run("delve", func(t *testing.T) {
		o := attachWith(t, strings.NewReader("break main.main\ncontinue\nprint main.version\nexit\n"), slim, "--",
			"dlv", "exec", "--check-go-version=false", "--allow-non-terminal-interactive=true", "/usr/bin/cntr-attach", "--", "--version")
		if o.code != 0 || !strings.Contains(o.stdout, "> [Breakpoint 1] main.main()") {
			t.Errorf("got %+v", o)
		}
	})
	t.Run("pdb", func(t *testing.T) {
		o := attachWith(t, strings.NewReader("next\np 6*x\nquit\n"), slim, "sh", "-c", "echo 'x = 7\nprint(x)' >/tmp/x.py; python3 -m pdb /tmp/x.py")
		if !strings.Contains(o.stdout, "42\n") {
			t.Errorf("got %+v", o)
		}
	})
	t.Run("git", func(t *testing.T) {
		out := succeeds(t, slim, "sh", "-ec", `cd /tmp; rm -rf r; git init -q r; cd r; echo a >a; git add a
			git -c user.name=n -c user.email=e commit -qm made; git log --format=%s; cd ..; rm -rf r`)
		if out != "made\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("vim", func(t *testing.T) {
		out := succeeds(t, slim, "sh", "-c", `echo one >/tmp/v; vim.tiny -es -u NONE -c 's/one/two/' -c wq /tmp/v; cat /tmp/v`)
		if out != "two\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("less", func(t *testing.T) {
		c := openConsole(t, slim, "less", "/etc/debian_chroot", "/etc/passwd")
		c.expect("nspawn:slim")
		c.enter("q")
		if code := c.exit(); code != 0 {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("tmux", func(t *testing.T) {
		c := openConsole(t, slim, "tmux", "new-session", "tty; ls -d $TMUX_TMPDIR/tmux-0/default; read end")
		c.expect("/dev/pts/1")
		// Its socket is where nobody in the machine can reach it.
		c.expect("/var/lib/cntr-private/tmux-0/default")
		c.enter("\r")
		if code := c.exit(); code != 0 {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("tcpdump", func(t *testing.T) { // which wants to be the user tcpdump
		out := succeeds(t, slim, "sh", "-c", `tcpdump -i lo -c 1 -w - 2>/tmp/said & until grep -q listening /tmp/said; do :; done
			while kill -0 $! 2>/dev/null; do timeout 1 curl -s http://127.0.0.1:8080/; done; wait $!`)
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

// Sockets in the machine's /run and /tmp are at the same places in a session, for clients that expect them there.
func TestSocketsOfTheMachine(t *testing.T) {
	for _, machine := range machines[:2] {
		out := succeeds(t, machine, "busctl", "get-property", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
			"org.freedesktop.systemd1.Manager", "Virtualization")
		if out != "s \"systemd-nspawn\"\n" {
			t.Errorf("%s: the machine's bus answers %q", machine, out)
		}
		r := start(t, machine, "sh", "-c", `rm -f /tmp/cntr-test; exec socat -d -d UNIX-LISTEN:/tmp/cntr-test EXEC:hostname 2>&1`)
		for !strings.Contains(r.line(), "listening on") {
		}
		if out := succeeds(t, machine, "socat", "-u", "UNIX-CONNECT:/tmp/cntr-test", "-"); out != machine+"\n" {
			t.Errorf("%s: the server answers %q", machine, out)
		}
	}
}

// A machine's time zone is found even if the machine itself does not have it, and its hosts are.
func TestTimeZoneAndHostsAreTheMachines(t *testing.T) {
	machine := oddMachine(t, func(root string) {
		must(t, "mkdir", root+"/etc")
		must(t, "ln", "-s", "../usr/share/zoneinfo/Asia/Tokyo", root+"/etc/localtime")
		must(t, "sh", "-c", `echo 192.0.2.7 db.machine >"$1"`, "sh", root+"/etc/hosts")
	})
	if out := succeeds(t, machine, "sh", "-c", "date +%Z; getent hosts db.machine"); !regexp.MustCompile(`^JST\n192\.0\.2\.7 +db\.machine\n$`).MatchString(out) {
		t.Errorf("got %q", out)
	}
	trap := oddMachine(t, func(root string) {
		must(t, "mkdir", root+"/etc")
		must(t, "ln", "-s", "/usr/share/zoneinfo/../../../root/secret", root+"/etc/localtime")
	})
	if out := succeeds(t, trap, "readlink", "/etc/localtime"); out != "/usr/share/zoneinfo/UTC\n" {
		t.Errorf("a machine's link leads to %q", out)
	}
}

// The caller's own tools are found, wherever in PATH they are.
func TestToolsOfTheCaller(t *testing.T) {
	for _, dir := range []string{"/root/bin", "/opt/tool/bin"} {
		must(t, "mkdir", "-p", dir)
		tool := dir + "/cntr-own-tool"
		must(t, "sh", "-c", `printf '#!/bin/sh\necho mine\n' >"$1" && chmod 755 "$1"`, "sh", tool)
		t.Setenv("PATH", dir+":/usr/bin:/usr/sbin:/bin")
		for _, machine := range machines {
			for _, mode := range []string{"--quiet", "--direct"} {
				if out := succeeds(t, mode, machine, "cntr-own-tool"); out != "mine\n" {
					t.Errorf("%s %s %s: %q", mode, machine, dir, out)
				}
			}
		}
		must(t, "rm", tool)
	}
}
