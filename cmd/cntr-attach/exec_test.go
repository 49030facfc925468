//go:build integration

package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a command sees at its execve(2) is compared with what it may see, and with nothing else: leaks of
// descriptors, capabilities and settings were flaws of others (CVE-2024-21626, CVE-2022-29162).
func TestWhatACommandSeesAtExec(t *testing.T) {
	for _, machine := range machines {
		for _, direct := range []bool{false, true} {
			for _, e := range []execution{{pty: true}, {pty: false}, {strict: true}} {
				e.machine, e.direct = machine, direct
				t.Run(strings.Join(append(e.options(), machine), " "), e.check)
			}
		}
	}
}

// execution is one way of executing a command.
type execution struct {
	t                   *testing.T
	machine             string
	direct, pty, strict bool
}

func (e *execution) options() []string {
	options := []string{"--pipe"}
	if e.pty {
		options[0] = "--pty"
	}
	if e.direct {
		options = append(options, "--direct")
	}
	if e.strict {
		options = append(options, "--strict")
	}
	return options
}

// caller is the environment that cntr-attach is called with: some of it is for the command.
var caller = map[string]string{
	"PATH": "/usr/bin:/bin", "HOME": "/root", "SHELL": "/bin/bash", "TERM": "xterm", "COLORTERM": "truecolor", "LANG": "C.UTF-8",
	"LC_TIME": "C", "EDITOR": "vim", "PAGER": "less",
	// And these are not.
	"HISTFILE": "/root/secret", "LD_LIBRARY_PATH": "/tmp", "SSH_AUTH_SOCK": "/run/secret", "SECRET": "s", "NOTIFY_SOCKET": "/run/secret",
	"XDG_RUNTIME_DIR": "/run/user/0", "TMUX": "/tmp/secret", "container": "the-host",
}

// run executes a program of the host's in the session, and returns what it says.
func (e *execution) run(command ...string) string {
	e.t.Helper()
	args := []string{"env", "-i"}
	for name, value := range caller {
		args = append(args, name+"="+value)
	}
	args = append(append(append(args, "cntr-attach", "--chdir=/usr/share"), e.options()...), e.machine)
	o := runCommand(e.t, nil, append(args, command...)...)
	if o.code != 0 || o.stderr != "" {
		e.t.Fatalf("%q: %+v", command, o)
	}
	return strings.ReplaceAll(o.stdout, "\r\n", "\n")
}

func (e execution) check(t *testing.T) {
	e.t = t
	leader := leaderOf(t, e.machine)
	files := map[string]string{}
	for _, file := range strings.Split(e.run("tail", "-v", "-n", "+1", "/proc/self/status", "/proc/self/stat", "/proc/self/limits",
		"/proc/self/oom_score_adj", "/proc/self/personality", "/proc/self/environ"), "==> /proc/self/") {
		name, content, _ := strings.Cut(file, " <==\n")
		files[name] = strings.TrimSuffix(content, "\n")
	}
	e.checkStatus(leader, files["status"])
	e.checkStat(files["stat"])
	if got, want := files["limits"], e.limits(); got != want {
		t.Errorf("the limits are\n%s\nnot\n%s", got, want)
	}
	adjustment := "0\n" // a service's
	if e.direct {
		adjustment = string(readFile(t, "/proc/self/oom_score_adj"))
	}
	if got := files["oom_score_adj"]; got != adjustment {
		t.Errorf("oom_score_adj is %q, not %q", got, adjustment)
	}
	if got := files["personality"]; got != "00000000\n" {
		t.Errorf("the personality is %q", got)
	}
	e.checkEnvironment(leader, files["environ"])
	links := e.run("ls", "-l", "/proc/self/cwd", "/proc/self/fd")
	if !strings.Contains(links, " /proc/self/cwd -> /usr/share\n") {
		t.Errorf("the working directory is not /usr/share: %s", links)
	}
	_, descriptors, _ := strings.Cut(links, "/proc/self/fd:\n")
	e.checkDescriptors(descriptors)
}

// checkStat looks at who the process is among others, and how it is scheduled (proc_pid_stat(5)).
func (e *execution) checkStat(stat string) {
	pid, _, _ := strings.Cut(stat, " ")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	ids := map[string]string{"group": fields[2], "session": fields[3]}
	if e.pty {
		ids["foreground group of the terminal"] = fields[5]
	} else if fields[4] != "0" || fields[5] != "-1" {
		e.t.Errorf("there is a terminal: %s", stat)
	}
	for what, id := range ids {
		if id != pid {
			e.t.Errorf("process %s has %s %s", pid, what, id)
		}
	}
	host := string(readFile(e.t, "/proc/1/stat")) // the whole test host may be nice
	niceOf := strings.Fields(host[strings.LastIndexByte(host, ')')+1:])[16]
	if nice, policy := fields[16], fields[38]; nice != niceOf || policy != "0" {
		e.t.Errorf("nice value %s, want %s; scheduling policy %s", nice, niceOf, policy)
	}
}

// checkStatus looks at all in /proc/PID/status that a process inherits.
func (e *execution) checkStatus(leader int, status string) {
	bounding := capabilities(e.t, string(readFile(e.t, fmt.Sprintf("/proc/%d/status", leader))))
	if !e.strict {
		bounding |= 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_CHROOT
	}
	capabilities, none := fmt.Sprintf("%016x", bounding), strings.Repeat("0", 16)
	host := string(readFile(e.t, "/proc/1/status"))
	for name, want := range map[string]string{
		"CapInh": none, "CapPrm": capabilities, "CapEff": capabilities, "CapBnd": capabilities, "CapAmb": none,
		"NoNewPrivs": "0",
		// What the test host is confined by, and nothing of the service's or the machine's.
		"Seccomp": field(e.t, host, "Seccomp"), "Seccomp_filters": field(e.t, host, "Seccomp_filters"),
		"SigPnd": none, "ShdPnd": none, "SigBlk": none, "SigIgn": none, "SigCgt": none,
		"Umask": "0022", "TracerPid": "0", "Uid": "0\t0\t0\t0", "Gid": "0\t0\t0\t0", "Groups": " ", "Threads": "1",
	} {
		if got := field(e.t, status, name); got != want {
			e.t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

// limits are those of a service; without the service, the caller's own. The one on open files is that of a service
// in both cases, as the Go runtime has raised the caller's.
func (e *execution) limits() string {
	service := must(e.t, "systemd-run", "--quiet", "--wait", "--pipe", "cat", "/proc/self/limits") + "\n"
	if !e.direct {
		return service
	}
	files := regexp.MustCompile("(?m)^Max open files .*$")
	return files.ReplaceAllString(string(readFile(e.t, "/proc/self/limits")), files.FindString(service))
}

func (e *execution) checkDescriptors(list string) {
	where := regexp.MustCompile(`^pipe:\[\d+\]$`)
	if e.pty {
		where = regexp.MustCompile(`^/dev/pts/0$`)
	}
	var numbers []string
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) < 4 || f[len(f)-2] != "->" {
			continue // the total
		}
		number, to := f[len(f)-3], f[len(f)-1]
		numbers = append(numbers, number)
		if number == "3" { // the directory that ls reads
			where = regexp.MustCompile(`^/proc/\d+/fd$`)
		}
		if !where.MatchString(to) {
			e.t.Errorf("descriptor %s is %s", number, to)
		}
	}
	if !slices.Equal(numbers, []string{"0", "1", "2", "3"}) {
		e.t.Errorf("the descriptors are %q", numbers)
	}
}

func (e *execution) checkEnvironment(leader int, env string) {
	want := map[string]string{
		"USER": "root", "LOGNAME": "root", "CNTR_MACHINE": "nspawn:" + e.machine,
		"XDG_RUNTIME_DIR": "/var/lib/cntr-private", "TMUX_TMPDIR": "/var/lib/cntr-private",
	}
	for _, name := range []string{"PATH", "HOME", "SHELL", "TERM", "COLORTERM", "LANG", "LC_TIME", "EDITOR", "PAGER"} {
		want[name] = caller[name]
	}
	if e.pty {
		want["PS1"] = "(nspawn:" + e.machine + ") # "
	}
	if !e.strict {
		// What systemd-nspawn tells the machine (container interface), and of that only what tells about it.
		for _, v := range strings.Split(string(readFile(e.t, fmt.Sprintf("/proc/%d/environ", leader))), "\x00") {
			if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "container") {
				want[name] = value
			}
		}
		if want["container"] != "systemd-nspawn" {
			e.t.Fatalf("the machine's environment should say what it is: %q", want)
		}
	}
	got := map[string]string{}
	for _, v := range strings.Split(strings.TrimSuffix(env, "\x00"), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		got[name] = value
	}
	if !maps.Equal(got, want) {
		e.t.Errorf("the environment is\n%q\nnot\n%q", got, want)
	}
}

// A user of the machine has no capability, nor can get one.
func TestUserHasNoCapability(t *testing.T) {
	for _, machine := range machines {
		status := succeeds(t, "--user=33", machine, "cat", "/proc/self/status")
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if got := field(t, status, set); strings.Trim(got, "0") != "" {
				t.Errorf("%s: %s is %s", machine, set, got)
			}
		}
		if got := field(t, status, "Uid") + " " + field(t, status, "Gid"); got != "33\t33\t33\t33 33\t33\t33\t33" {
			t.Errorf("%s: it is %s", machine, got)
		}
	}
}

// The caller's own settings are not the command's.
func TestSettingsOfTheCallerStayOutside(t *testing.T) {
	want := succeeds(t, slim, "cat", "/proc/self/status")
	o := runCommand(t, nil, "setpriv", "--inh-caps=+chown,+sys_admin", "--ambient-caps=+sys_admin", "nice", "-n", "5", "sh", "-c",
		`umask 077; trap '' INT TERM HUP PIPE; exec 7</etc/shadow; cntr-attach --direct slim sh -c '
			cat /proc/self/status; ls /proc/self/fd >&2'`)
	for _, name := range []string{"CapInh", "CapPrm", "CapBnd", "CapAmb", "SigBlk", "SigIgn", "Umask"} {
		if got, want := field(t, o.stdout, name), field(t, want, name); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
	if o.stderr != "0\n1\n2\n3\n" {
		t.Errorf("descriptors: %s", o.stderr)
	}
}
