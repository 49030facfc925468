//go:build integration

package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// console is a person at a terminal that runs cntr-attach.
type console struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	slave  *os.File
	seen   bytes.Buffer
	done   chan struct{}
}

func openConsole(t *testing.T, args ...string) *console {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &console{t: t, master: os.NewFile(uintptr(fd), "console"), done: make(chan struct{})}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	c.slave = os.NewFile(peer, "console")
	c.resize(24, 80)
	c.cmd = exec.Command("cntr-attach", args...)
	c.cmd.Env = append(os.Environ(), "TERM=xterm", "SHELL=/bin/bash")
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = c.slave, c.slave, c.slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
		_ = c.master.Close()
		_ = c.slave.Close()
	})
	return c
}

func (c *console) resize(rows, columns uint16) {
	c.t.Helper()
	if err := unix.IoctlSetWinsize(int(c.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *console) enter(keys string) {
	c.t.Helper()
	if _, err := c.master.WriteString(keys); err != nil {
		c.t.Fatal(err)
	}
}

// expect reads until the screen shows want, after what was expected before.
func (c *console) expect(want string) {
	c.t.Helper()
	_ = c.master.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 4096)
	for {
		if i := strings.Index(c.seen.String(), want); i >= 0 {
			c.seen.Next(i + len(want))
			return
		}
		n, err := c.master.Read(b)
		if err != nil {
			c.t.Fatalf("no %q: %v; seen %q", want, err, &c.seen)
		}
		c.seen.Write(b[:n])
	}
}

func (c *console) exit() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		c.t.Fatalf("did not end; seen %q", &c.seen)
	}
	return c.cmd.ProcessState.ExitCode()
}

func (c *console) settings() unix.Termios {
	c.t.Helper()
	s, err := unix.IoctlGetTermios(int(c.slave.Fd()), unix.TCGETS)
	if err != nil {
		c.t.Fatal(err)
	}
	return *s
}

func TestShellInATerminal(t *testing.T) {
	for _, mode := range [][]string{nil, {"--direct"}} {
		for _, machine := range machines {
			t.Run(machine+strings.Join(mode, ""), func(t *testing.T) {
				c := openConsole(t, append(mode, machine)...)
				before := c.settings()
				c.expect(machine) // the prompt tells where one is
				c.enter("tty; stty size; test -t 2 && echo terminal\r")
				c.expect("\r/dev/pts/0\r\n")
				c.expect("24 80\r\n")
				c.expect("terminal\r\n")
				c.enter("ls -l /proc/self/fd/0 | grep -o '/dev/pts/.*'; script -qc 'tty' /dev/null; echo fin''ished\r")
				c.expect("\r/dev/pts/0\r\n")
				c.expect("/dev/pts/1\r\n")
				c.expect("finished\r\n") // what is typed earlier, script takes
				// Before each prompt readline reads the terminal's size and sets it to what it read (rltty.c,
				// set_winsize): a change between the two is lost in any terminal.
				c.expect(machine)
				c.resize(33, 101)
				c.enter("until test \"$(stty size)\" = '33 101'; do :; done; echo re''sized\r")
				c.expect("resized\r\n")
				c.enter("exit 7\r")
				if code := c.exit(); code != 7 {
					t.Errorf("exit status %d", code)
				}
				if c.settings() != before {
					t.Error("the terminal's settings were not restored")
				}
			})
		}
	}
}

func TestInterruptReachesTheCommand(t *testing.T) {
	c := openConsole(t, booted, "sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 1; done")
	c.expect("ready")
	c.enter("\x03")
	c.expect("caught")
	if code := c.exit(); code != 5 {
		t.Errorf("exit status %d", code)
	}
}

func TestEscapeSequenceLeaves(t *testing.T) {
	c := openConsole(t, booted, "sh", "-c", "trap '' HUP; echo ready; sleep 1000")
	before := c.settings()
	c.expect("ready")
	c.enter("\x1d\x1d\x1d")
	c.expect("left deb")
	if code := c.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if c.settings() != before {
		t.Error("the terminal's settings were not restored")
	}
	waitForNoScopes(t)
}

func TestTerminalIsRestoredWhenKilled(t *testing.T) {
	c := openConsole(t, booted, "sh", "-c", "echo ready; sleep 1000")
	before := c.settings()
	c.expect("ready")
	if err := c.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := c.exit(); code != 128+int(unix.SIGTERM) {
		t.Errorf("exit status %d", code)
	}
	if c.settings() != before {
		t.Error("the terminal's settings were not restored")
	}
	waitForNoScopes(t)
}

func TestTerminalIsTheCommandsOwn(t *testing.T) {
	// Typing into the caller's terminal (CVE-2017-5226) would need a descriptor of it.
	c := openConsole(t, booted, "sh", "-c", "readlink -f /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2; ps -o sid= -p $$; echo $$")
	for range 3 {
		c.expect("/dev/pts/0\r\n")
	}
	if code := c.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

func TestPtyOptionWithoutATerminal(t *testing.T) {
	o := attachWith(t, strings.NewReader("echo $((6*7))\n"), "-t", booted, "sh", "-c", "tty; read line; eval \"$line\"")
	if o.code != 0 || !strings.Contains(o.stdout, "/dev/pts/0\r\n") || !strings.Contains(o.stdout, "42\r\n") {
		t.Errorf("got %+v", o)
	}
}
