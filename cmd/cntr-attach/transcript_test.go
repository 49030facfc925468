//go:build integration

package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A transcript is a command of the README and what it prints; in a session, the commands that are typed there and what they print.
type transcript struct {
	command string
	typed   []transcript
	output  []string
}

// prompts are those of the host's shell and of a session's.
const hostPrompt = "root@host:~# "

var sessionPrompt = regexp.MustCompile(`^\(\w+:\w+\) # `)

// transcripts finds what is typed at prompts in the code blocks of a text.
func transcripts(text string) []transcript {
	var all []transcript
	var into *transcript
	for _, line := range strings.Split(text, "\n") {
		line, block := strings.CutPrefix(line, "    ")
		prompt := sessionPrompt.FindString(line)
		switch {
		case !block:
			into = nil
		case strings.HasPrefix(line, hostPrompt):
			command, _, _ := strings.Cut(strings.TrimPrefix(line, hostPrompt), "  #")
			all = append(all, transcript{command: strings.TrimSpace(command)})
			into = &all[len(all)-1]
		case prompt != "" && into != nil:
			session := &all[len(all)-1]
			session.typed = append(session.typed, transcript{command: strings.TrimPrefix(line, prompt)})
			into = &session.typed[len(session.typed)-1]
		case into != nil:
			into.output = append(into.output, line)
		}
	}
	return all
}

// changing is what is another on each run: addresses, and the numbers of processes and network interfaces.
var changing = regexp.MustCompile(`0x[0-9a-f]+|fe80::[0-9a-f:]+|@if\d+|\(process \d+\)`)

// normal returns a command's lines without what changes, in an order of their own.
func normal(lines []string) []string {
	var result []string
	for _, line := range lines {
		if fields := strings.Fields(changing.ReplaceAllString(line, "…")); len(fields) > 0 {
			result = append(result, strings.Join(fields, " "))
		}
	}
	slices.Sort(result)
	return result
}

// What the README shows is what happens.
func TestTranscriptsOfTheReadme(t *testing.T) {
	all := transcripts(string(readFile(t, "../../README.md")))
	if len(all) < 4 {
		t.Fatalf("README.md has %d transcripts", len(all))
	}
	for _, script := range all {
		t.Run(script.command, func(t *testing.T) {
			if len(script.typed) > 0 {
				typeTranscript(t, script)
				return
			}
			cmd := exec.Command("bash", "-c", script.command)
			cmd.Dir = "/root"
			cmd.Env = append(os.Environ(), "HOME=/root")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v", err)
			}
			if got, want := normal(strings.Split(string(out), "\n")), normal(script.output); !slices.Equal(got, want) {
				t.Errorf("it prints\n%s\nREADME.md has\n%s", out, strings.Join(script.output, "\n"))
			}
		})
	}
}

// typeTranscript types the commands of a session at a terminal.
func typeTranscript(t *testing.T, script transcript) {
	args, ok := strings.CutPrefix(script.command, "cntr-attach ")
	if !ok {
		t.Fatalf("no session is started by %q", script.command)
	}
	c := openConsole(t, strings.Fields(args)...)
	for _, typed := range script.typed {
		c.expect("(nspawn:slim)")
		c.enter(typed.command + "\r")
		for _, line := range typed.output {
			for _, word := range strings.Fields(line) {
				c.expect(word)
			}
		}
	}
	c.expect("(nspawn:slim)")
	c.enter("exit\r")
	if code := c.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}
