//go:build integration

package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStreamsAreByteExact(t *testing.T) {
	if o := attachWith(t, strings.NewReader("a\nb"), booted, "cat"); o != (outcome{"a\nb", "", 0}) {
		t.Errorf("three bytes: %+v", o)
	}
	if o := attachTo(t, booted, "sh", "-c", "printf out; printf err >&2"); o != (outcome{"out", "err", 0}) {
		t.Errorf("stdout and stderr: %+v", o)
	}
	data := make([]byte, 100<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	o := attachWith(t, bytes.NewReader(data), userns, "cat")
	if o.code != 0 || !bytes.Equal([]byte(o.stdout), data) {
		t.Errorf("100 MiB: exit status %d, %d bytes came back, equal: %v; %s",
			o.code, len(o.stdout), bytes.Equal([]byte(o.stdout), data), o.stderr)
	}
}

func TestStdinEndsForItself(t *testing.T) {
	r := start(t, booted, "sh", "-c", "cat; echo end of file; read more || echo closed; exit 3")
	if _, err := r.stdin.Write([]byte("text\n")); err != nil {
		t.Fatal(err)
	}
	if got := r.line(); got != "text" {
		t.Errorf("got %q", got)
	}
	if err := r.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if a, b := r.line(), r.line(); a != "end of file" || b != "closed" {
		t.Errorf("got %q, %q", a, b)
	}
	if code := r.exit(runTimeout); code != 3 {
		t.Errorf("exit status %d", code)
	}
}

// A command that closes its streams and runs on: their other ends see that, as those of any command.
func TestStreamsEndForThemselves(t *testing.T) {
	for _, mode := range []string{"--quiet", "--direct"} {
		r := start(t, mode, booted, "sh", "-c", "exec <&- >&-; while [ ! -e /tmp/go-on ]; do sleep 0.01; done; rm /tmp/go-on; exit 3")
		_ = r.stdout.SetReadDeadline(time.Now().Add(runTimeout))
		if _, err := r.stdout.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: its output has not ended: %v", mode, err)
		}
		for err := error(nil); !errors.Is(err, unix.EPIPE); {
			if _, err = r.stdin.Write(make([]byte, 1<<16)); err != nil && !errors.Is(err, unix.EPIPE) {
				t.Fatal(err)
			}
		}
		succeeds(t, booted, "touch", "/tmp/go-on")
		if code := r.exit(runTimeout); code != 3 {
			t.Errorf("%s: exit status %d", mode, code)
		}
	}
}

// A stdin that nobody reads, or that stays open, must not keep the session from ending.
func TestEndDoesNotWaitForStdin(t *testing.T) {
	r := start(t, booted, "true")
	if code := r.exit(runTimeout); code != 0 {
		t.Errorf("exit status %d: %s", code, &r.stderr)
	}
}

// What the command left in the background dies with its session, and does not keep its output open.
func TestBackgroundProcessesEndWithTheSession(t *testing.T) {
	o := attachTo(t, booted, "sh", "-c", "sleep 1000 & setsid sleep 1000 & echo started")
	if o != (outcome{"started\n", "", 0}) {
		t.Errorf("got %+v", o)
	}
	if left := runCommand(t, nil, "pgrep", "-x", "sleep", "-a"); strings.Contains(left.stdout, "sleep 1000") {
		t.Errorf("left: %s", left.stdout)
	}
}

func TestExitStatus(t *testing.T) {
	for _, mode := range []string{"--quiet", "--direct"} {
		for _, test := range []struct {
			command []string
			code    int
		}{
			{[]string{"true"}, 0},
			{[]string{"sh", "-c", "exit 7"}, 7},
			{[]string{"sh", "-c", "kill -KILL $$"}, 137},
			{[]string{"sh", "-c", "kill -TERM $$"}, 143},
			{[]string{"sh", "-c", "kill -USR1 $$"}, 138},
			{[]string{"no-such-command"}, 127},
			{[]string{"/no/such/command"}, 127},
			{[]string{"/etc/fstab"}, 126},
			{[]string{"/usr"}, 126},
		} {
			if o := attachTo(t, append([]string{mode, booted}, test.command...)...); o.code != test.code {
				t.Errorf("%s %q: exit status %d, want %d; %s", mode, test.command, o.code, test.code, o.stderr)
			}
		}
	}
}

// A reader that goes away ends the session, as it ends any command in a pipeline.
func TestBrokenPipeEndsTheSession(t *testing.T) {
	r := start(t, booted, "yes")
	r.line()
	_ = r.stdout.Close()
	if code := r.exit(runTimeout); code == 0 {
		t.Errorf("exit status %d", code)
	}
	waitForNoScopes(t)
}

func TestDescriptorsOfTheCallerStayOutside(t *testing.T) {
	secret, err := os.Open("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	if err := clearCloseOnExec(secret); err != nil {
		t.Fatal(err)
	}
	out := succeeds(t, booted, "ls", "/proc/self/fd")
	if out != "0\n1\n2\n3\n" { // 3 is the directory that ls reads
		t.Errorf("got %q", out)
	}
}

// Interrupted, a command can still tell what it has seen, as tcpdump and strace do.
func TestInterruptLetsTheCommandFinish(t *testing.T) {
	for _, mode := range []string{"--quiet", "--direct"} {
		for _, interrupt := range []unix.Signal{unix.SIGINT, unix.SIGTERM} {
			r := start(t, mode, booted, "sh", "-c", "trap 'echo summary; exit' HUP; echo ready; while :; do sleep 0.01; done")
			if got := r.line(); got != "ready" {
				t.Fatalf("got %q", got)
			}
			if err := r.cmd.Process.Signal(interrupt); err != nil {
				t.Fatal(err)
			}
			if got := r.line(); got != "summary" {
				t.Errorf("%s %v: got %q", mode, interrupt, got)
			}
			if code := r.exit(10 * time.Second); code != 128+int(interrupt) {
				t.Errorf("%s %v: exit status %d", mode, interrupt, code)
			}
		}
	}
	waitForNoScopes(t)
}
