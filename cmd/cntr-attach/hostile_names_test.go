//go:build integration

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
)

// awkward are texts that break what they are pasted into, if they are pasted.
var awkward = []string{
	"line\nbreak", "\x1b]0;title\a\x1b[31m", "carriage\rreturn", "../../../../etc/passwd", "/", ".", "..", "-rf", "--", "$(reboot)`reboot`",
	"%s%n%d", `"quo'ted\"`, "tab\tand\vmore", "\u202eright to left", "a.service\nb.service", strings.Repeat("x", 4096),
	strings.Repeat("../", 1365), "ünïcödé", "*", "a/b", "a b",
}

// A name that no machine has is refused, in one line that nothing in the name can break or colour.
func TestAwkwardNamesOfMachines(t *testing.T) {
	for _, mode := range []string{"--quiet", "--direct"} {
		for _, kind := range []string{"", "nspawn:", "lxc:", "unit:", "pid:"} {
			for _, name := range append(awkward, "", "0", "-1", "99999999999999999999", "1 ", "1\n") {
				begin := time.Now()
				o := attachTo(t, mode, "--", kind+name, "true")
				if o.code != 125 || o.stdout != "" {
					t.Errorf("%s %q: %+v", mode, kind+name, o)
				}
				checkMessage(t, o.stderr)
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("%s %q: took %v", mode, kind+name, took)
				}
			}
		}
	}
}

// checkMessage checks that there is a message and at most a hint, of nothing but printable characters.
func checkMessage(t *testing.T, stderr string) {
	t.Helper()
	if !strings.HasPrefix(stderr, "cntr-attach: ") || strings.Count(stderr, "\n") > 2 || strings.Contains(stderr, "goroutine ") {
		t.Errorf("not a message and a hint: %q", stderr)
	}
	for line := range strings.Lines(stderr) {
		for _, r := range strings.TrimSuffix(line, "\n") {
			if !unicode.IsPrint(r) && r != '\t' {
				t.Errorf("%q in %q", r, stderr)
			}
		}
	}
}

// Arguments, variables, users and directories mean themselves, whatever is in them.
func TestAwkwardArguments(t *testing.T) {
	for _, mode := range []string{"--quiet", "--direct"} {
		args := append([]string{mode, slim, "printf", `%s\0`}, awkward...)
		if out := succeeds(t, args...); out != strings.Join(awkward, "\x00")+"\x00" {
			t.Errorf("%s: the arguments became %q", mode, out)
		}
		options := []string{mode}
		var want strings.Builder
		script := "printf '%s\\0'"
		for i, value := range awkward {
			options = append(options, fmt.Sprintf("--setenv=V%d=%s", i, value))
			script += fmt.Sprintf(` "$V%d"`, i)
			want.WriteString(value + "\x00")
		}
		if out := succeeds(t, append(options, slim, "sh", "-c", script)...); out != want.String() {
			t.Errorf("%s: the variables became %q", mode, out)
		}
		for _, text := range awkward {
			o := attachTo(t, mode, "--user="+text, slim, "true")
			if o.code != 125 {
				t.Errorf("%s: user %q: %+v", mode, text, o)
			}
			checkMessage(t, o.stderr)
			if o := attachTo(t, mode, "--chdir=/no/"+text, slim, "true"); o.code != 125 {
				t.Errorf("%s: directory %q: %+v", mode, text, o)
			} else {
				checkMessage(t, o.stderr)
			}
			o = attachTo(t, mode, slim, "no-such-command-"+text)
			if o.code != 127 && o.code != 126 {
				t.Errorf("%s: command %q: %+v", mode, text, o)
			}
			checkMessage(t, o.stderr)
		}
	}
	nothingIsLeft(t)
}

// What a machine's first process has in its environment cannot make a tool of the host do anything.
func TestMachineHasAPoisonedEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"BASH_ENV": "/tmp/poison", "ENV": "/tmp/poison", "PROMPT_COMMAND": "echo poisoned", "PS4": "$(echo poisoned)", "PAGER": "echo poisoned",
		"PYTHONSTARTUP": "/tmp/poison", "GIT_PAGER": "echo poisoned", "PATH": "/tmp:" + os.Getenv("PATH"), "SHELLOPTS": "xtrace",
		"INPUTRC": "/tmp/poison", "PYTHONPATH": "/tmp/poison", "GREETING_HOST": "hello", "FORGED_URL": "a\nLD_PRELOAD=/tmp/poison",
	} {
		t.Setenv(name, value)
	}
	machine, kill := handmade(t, func(root string) {
		skeleton(t, root)
		for _, program := range []string{"poison", "cat"} {
			if err := os.WriteFile(root+"/tmp/"+program, []byte("#!/bin/sh\necho poisoned\n"), 0o755); err != nil {
				t.Error(err)
			}
		}
	}, "wait")
	defer kill()
	for _, mode := range []string{"--quiet", "--direct"} {
		o := runCommand(t, nil, "env", "-i", "PATH=/usr/bin:/bin", "cntr-attach", mode, machine, "bash", "-c",
			"bash -xc true 2>/dev/null; echo $GREETING_HOST; cat /etc/debian_chroot; env | grep -ci poison")
		if want := "hello\n" + machine + "\n0\n"; o.stdout != want {
			t.Errorf("%s: got %+v, want %q", mode, o, want)
		}
	}
}
