//go:build integration

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

const patience = 30 * time.Second // bounds every wait of a test

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// outcome is what a command left.
type outcome struct {
	stdout, stderr string
	code           int
}

func runCommand(t *testing.T, env []string, args ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(bounded(t), args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), env...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v", args, err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// succeeds runs a command that must, and returns what it prints.
func succeeds(t *testing.T, args ...string) string {
	t.Helper()
	got := runCommand(t, nil, args...)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("%q: %+v", args, got)
	}
	return got.stdout
}

// onTerminal runs a command on a terminal of 80 columns and 24 lines, and returns what comes there.
func onTerminal(t *testing.T, env []string, command string) string {
	t.Helper()
	cmd := exec.CommandContext(bounded(t), "script", "--quiet", "--return", "--command", "stty rows 24 columns 80; "+command, os.DevNull)
	cmd.Env = append(append(os.Environ(), "TERM=xterm"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v, %s", command, err, out)
	}
	return strings.ReplaceAll(string(out), "\r\n", "\n")
}

// running is a session of "cat", or of another command.
type running struct {
	*dbus.Attached
	stdin *os.File
}

func start(t *testing.T, machine string, o dbus.AttachOptions) *running {
	t.Helper()
	c, err := dbus.Connect(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if o.Command == nil {
		o.Command = []string{"cat"}
	}
	s := &running{}
	if !o.Terminal {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		o.Stdin, s.stdin = r, w
	}
	if s.Attached, err = c.Attach(bounded(t), machine, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{s.stdin, s.Terminal, s.Status} {
			if f != nil {
				_ = f.Close()
			}
		}
	})
	return s
}

func (s *running) end(t *testing.T) status.Status {
	t.Helper()
	if err := s.Status.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return status.Read(s.Status)
}

// table splits a table into its rows of words.
func rows(text string) [][]string {
	var all [][]string
	for _, line := range strings.Split(text, "\n") {
		all = append(all, strings.Fields(line))
	}
	return all
}

func TestListsAsTables(t *testing.T) {
	s := start(t, "debu", dbus.AttachOptions{User: "1234"})
	machines := succeeds(t, "cntrctl")
	if machines != succeeds(t, "cntrctl", "list") {
		t.Error("list is not what is done without a command")
	}
	lines := strings.Split(machines, "\n")
	if lines[0] != "MACHINE KIND   CLASS     SERVICE        LEADER" && !slices.Equal(strings.Fields(lines[0]), []string{"MACHINE", "KIND", "CLASS", "SERVICE", "LEADER"}) {
		t.Errorf("the head is %q", lines[0])
	}
	// As machinectl's: columns start where their heads do, and a total comes after an empty line.
	for _, line := range lines[1 : len(lines)-3] {
		if at := strings.Index(lines[0], "KIND"); line[at-1] != ' ' || line[at] == ' ' {
			t.Errorf("%q is not aligned with %q", line, lines[0])
		}
	}
	if lines[len(lines)-3] != "" || !strings.HasSuffix(lines[len(lines)-2], " machines listed.") {
		t.Errorf("it ends with %q", lines[len(lines)-3:])
	}
	bare := succeeds(t, "cntrctl", "--no-legend", "list")
	if strings.Contains(bare, "MACHINE") || strings.Contains(bare, "listed") || !strings.Contains(bare, "slim") {
		t.Errorf("without a legend: %s", bare)
	}
	want := []string{s.ID, "nspawn:debu", "1234", "cntr-debu-" + s.ID + ".scope", "cat"}
	if got := rows(succeeds(t, "cntrctl", "sessions", "--no-legend")); !slices.ContainsFunc(got, func(r []string) bool { return slices.Equal(r, want) }) {
		t.Errorf("sessions are %q, want %q", got, want)
	}
	if got := succeeds(t, "cntrctl", "images"); !slices.Equal(rows(got)[0], []string{"NAME", "TYPE", "PATH"}) || !strings.Contains(got, "host") {
		t.Errorf("images are %s", got)
	}
}

func TestListsAsJSON(t *testing.T) {
	s := start(t, "debu", dbus.AttachOptions{})
	for command, want := range map[string]map[string]any{
		"list":     {"machine": "debu", "kind": "nspawn", "class": "container", "service": "systemd-nspawn"},
		"sessions": {"session": s.ID, "machine": "nspawn:debu", "user": "root", "command": []any{"cat"}},
		"images":   {"name": "host"},
	} {
		short, pretty := succeeds(t, "cntrctl", "--json=short", command), succeeds(t, "cntrctl", "--json=pretty", command)
		if strings.Count(short, "\n") != 1 || strings.Count(pretty, "\n") < 4 || !strings.Contains(pretty, "\t") {
			t.Errorf("%s: short is %s, pretty is %s", command, short, pretty)
		}
		var a, b []map[string]any
		if err := errors.Join(json.Unmarshal([]byte(short), &a), json.Unmarshal([]byte(pretty), &b)); err != nil {
			t.Fatal(err)
		}
		if len(a) != len(b) {
			t.Errorf("%s: %d in short, %d in pretty", command, len(a), len(b))
		}
		if !slices.ContainsFunc(a, func(row map[string]any) bool {
			for name, value := range want {
				if got, _ := json.Marshal(row[name]); string(got) != encoded(t, value) {
					return false
				}
			}
			return true
		}) {
			t.Errorf("%s: %v is not in %s", command, want, short)
		}
		if off := succeeds(t, "cntrctl", "--json=off", command); strings.HasPrefix(off, "[") {
			t.Errorf("%s as a table is %s", command, off)
		}
	}
	if got := runCommand(t, nil, "cntrctl", "--json=yes"); got.code != 1 || !strings.Contains(got.stderr, "hint: it is short, pretty or off") {
		t.Errorf("--json=yes: %+v", got)
	}
}

func encoded(t *testing.T, value any) string {
	t.Helper()
	out, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestStatusTellsOfTheTerminal(t *testing.T) {
	pty := start(t, "debu", dbus.AttachOptions{Terminal: true, Rows: 24, Columns: 80, Writable: true})
	pipes := start(t, "slim", dbus.AttachOptions{})
	for id, want := range map[string][]string{
		pty.ID:   {"TTY: pts/0", "Machine: nspawn:debu (container, systemd-nspawn)", "State: running", "Image: host (writable)", "User: root, for uid 0 of this host"},
		pipes.ID: {"TTY: none", "Machine: nspawn:slim", "(read-only)", "Scope: cntr-slim-" + pipes.ID + ".scope", "CPU: "},
	} {
		got := succeeds(t, "cntrctl", "status", id)
		if !strings.HasPrefix(got, "● "+id+" - cat\n") {
			t.Errorf("it begins with %q", got)
		}
		for _, one := range want {
			if !strings.Contains(got, one) {
				t.Errorf("%q is missing in\n%s", one, got)
			}
		}
	}
	// The terminal is the one that the command has.
	got := start(t, "debu", dbus.AttachOptions{Command: []string{"sh", "-c", "tty; cat"}, Terminal: true})
	line := make([]byte, 100)
	n, err := got.Terminal.Read(line)
	if err != nil || strings.TrimSpace(string(line[:n])) != "/dev/pts/0" {
		t.Errorf("its terminal is %q, %v", line[:n], err)
	}
	var details []map[string]any
	for _, id := range []string{pty.ID, pipes.ID} {
		var one map[string]any
		if err := json.Unmarshal([]byte(succeeds(t, "cntrctl", "--json=short", "status", id)), &one); err != nil {
			t.Fatal(err)
		}
		details = append(details, one)
	}
	if details[0]["terminal"] != true || details[1]["terminal"] != false || details[0]["session"] != pty.ID {
		t.Errorf("as JSON: %v", details)
	}
}

func TestTerminateAndKill(t *testing.T) {
	a, b := start(t, "slim", dbus.AttachOptions{}), start(t, "debu", dbus.AttachOptions{})
	if out := succeeds(t, "cntrctl", "terminate", a.ID, b.ID); out != "" {
		t.Errorf("it prints %s", out)
	}
	for _, s := range []*running{a, b} {
		if end := s.end(t); !end.Terminated {
			t.Errorf("%+v", end)
		}
	}
	for _, signal := range []string{"--signal=USR1", "-sSIGUSR1", "-s10"} {
		s := start(t, "slim", dbus.AttachOptions{})
		succeeds(t, "cntrctl", "kill", signal, s.ID)
		if end := s.end(t); end.Signal != 10 || end.Terminated {
			t.Errorf("%s: %+v", signal, end)
		}
	}
	// What can be done is done, and all that cannot is told.
	c := start(t, "slim", dbus.AttachOptions{})
	got := runCommand(t, nil, "cntrctl", "terminate", "00000000", c.ID, "11111111")
	if got.code != 1 || strings.Count(got.stderr, "no session has the id") != 2 || !strings.Contains(got.stderr, "hint: cntrctl sessions shows the ids") {
		t.Errorf("%+v", got)
	}
	if end := c.end(t); !end.Terminated {
		t.Errorf("%+v", end)
	}
}

func TestMonitor(t *testing.T) {
	s := start(t, "slim", dbus.AttachOptions{}) // the service runs
	for _, c := range []struct {
		args []string
		want []string // in a line each
	}{
		{[]string{"cntrctl", "monitor"}, []string{" new nspawn:debu root cat", " removed success 0"}},
		{[]string{"cntrctl", "--json=short", "monitor"}, []string{`"event":"new"`, `"Result":"success"`}},
		{
			[]string{"setpriv", "--reuid=alice", "--regid=alice", "--clear-groups", "cntrctl", "monitor"},
			[]string{" new\n", " removed success 0"},
		},
	} {
		cmd := exec.CommandContext(bounded(t), c.args[0], c.args[1:]...)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		lines := make(chan string, 1000)
		go func() {
			for scanner := bufio.NewScanner(r); scanner.Scan(); {
				lines <- scanner.Text() + "\n"
			}
			close(lines)
		}()
		// Nothing tells when it listens: sessions are started until one is told of.
		var got string
		for got == "" {
			s := start(t, "debu", dbus.AttachOptions{})
			select {
			case got = <-lines:
			case <-time.After(200 * time.Millisecond):
			}
			_ = s.stdin.Close()
			s.end(t)
			if strings.Contains(got, s.ID) {
				got += <-lines
			} else {
				got = "" // of the one before
			}
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%q tells %q, without %q", c.args, got, want)
			}
		}
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("interrupted, %q ends with %v", c.args, err)
		}
		_ = r.Close()
	}
	_ = s.stdin.Close()
}

// Colours and the pager are for terminals.
func TestColoursAndPager(t *testing.T) {
	const escape = "\x1b["
	s := start(t, "slim", dbus.AttachOptions{})
	if out := succeeds(t, "cntrctl", "status", s.ID); strings.Contains(out, escape) {
		t.Errorf("colours without a terminal: %q", out)
	}
	noPager := []string{"SYSTEMD_PAGER="}
	for _, c := range []struct {
		env    []string
		colour bool
	}{
		{nil, true},
		{[]string{"NO_COLOR=1"}, false},
		{[]string{"TERM=dumb"}, false},
	} {
		for _, command := range []string{"cntrctl sessions", "cntrctl status " + s.ID} {
			out := onTerminal(t, append(slices.Clone(c.env), noPager...), command)
			if strings.Contains(out, escape) != c.colour || !strings.Contains(out, s.ID) {
				t.Errorf("%q %s: %q", c.env, command, out)
			}
		}
	}
	pager := t.TempDir() + "/pager"
	if err := os.WriteFile(pager, []byte("#!/bin/sh\necho \"<$*|$LESS|$LESSSECURE\"\ncat\necho '>'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env   []string
		flags string
		want  string // the first line; empty: no pager
	}{
		{[]string{"SYSTEMD_PAGER=" + pager + " -x"}, "", "<-x|FRSXMK|1\n"},
		{[]string{"PAGER=" + pager}, "", "<|FRSXMK|1\n"},
		{[]string{"PAGER=false", "SYSTEMD_PAGER=" + pager}, "", "<|FRSXMK|1\n"},
		{[]string{"SYSTEMD_PAGER=" + pager, "SYSTEMD_LESS=FR"}, "", "<|FR|1\n"},
		{[]string{"PAGER=" + pager, "SYSTEMD_PAGER=cat"}, "", ""},
		{[]string{"PAGER=" + pager, "SYSTEMD_PAGER="}, "", ""},
		{[]string{"SYSTEMD_PAGER=" + pager}, "--no-pager ", ""},
		{[]string{"SYSTEMD_PAGER=/nonexistent/pager"}, "", ""},
	} {
		out := onTerminal(t, c.env, "cntrctl "+c.flags+"sessions")
		if !strings.Contains(out, s.ID) || (c.want != "") != strings.HasPrefix(out, "<") || !strings.HasPrefix(out, c.want) {
			t.Errorf("%q %s: %q, want %q", c.env, c.flags, out, c.want)
		}
	}
	// The real one shows what fits without waiting for a key.
	if out := onTerminal(t, []string{"SYSTEMD_PAGER=less"}, "cntrctl sessions"); !strings.Contains(out, s.ID) {
		t.Errorf("less shows %q", out)
	}
	if out := runCommand(t, []string{"SYSTEMD_PAGER=" + pager}, "cntrctl", "sessions"); strings.Contains(out.stdout, "<") {
		t.Errorf("a pager without a terminal: %+v", out)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"frobnicate"}, `there is no command "frobnicate"`},
		{[]string{"status"}, "which session?"},
		{[]string{"list", "x"}, `list takes no argument "x"`},
		{[]string{"kill", "-sNONE", "x"}, `there is no signal "NONE"`},
		{[]string{"--colour"}, "unknown flag"},
	} {
		got := runCommand(t, nil, append([]string{"cntrctl"}, c.args...)...)
		if got.code != 1 || !strings.Contains(got.stderr, "cntrctl: "+c.want) || !strings.Contains(got.stderr, "hint: ") || got.stdout != "" {
			t.Errorf("%q: %+v", c.args, got)
		}
	}
	if got := succeeds(t, "cntrctl", "--help"); !strings.Contains(got, "monitor") {
		t.Errorf("--help: %s", got)
	}
	if got := succeeds(t, "cntrctl", "--version"); !strings.HasPrefix(got, "cntrctl ") {
		t.Errorf("--version: %s", got)
	}
}
