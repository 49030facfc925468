//go:build integration

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sshd runs OpenSSH's server on the loopback, and has ssh, as cntr-attach finds it, go there for a host called "far".
func sshd(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{"host", "user"} {
		must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path(key))
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	const port = 2022
	for name, text := range map[string]string{
		"sshd_config": fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPidFile none\nUsePAM no\n"+
			"PermitRootLogin yes\nLogLevel INFO\n", port, path("host"), path("user.pub")),
		"config": fmt.Sprintf("Host far\nHostName 127.0.0.1\nPort %d\nIdentityFile %s\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
			port, path("user")),
	} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The real one, which looks for its settings at the home of passwd(5), not at $HOME.
	ssh := must(t, "sh", "-c", "command -v ssh")
	if err := os.Mkdir(path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("bin/ssh"), []byte("#!/bin/sh\nexec "+strings.TrimSpace(ssh)+" -F "+path("config")+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", path("bin")+":"+os.Getenv("PATH"))
	server := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", path("sshd_config"))
	stderr, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "Server listening") {
			go func() { // it is not to wait for us
				for lines.Scan() {
				}
			}()
			return
		}
	}
	t.Fatal("sshd does not start")
}

// By way of ssh it is as on this host: arguments, streams, exit statuses, and a terminal.
func TestOnAnotherHost(t *testing.T) {
	sshd(t)
	odd := []string{"a b", "", `"'\`, "$HOME `id`; exit 9", "*", "-v", "ä\n"}
	got := attachTo(t, append([]string{"-H", "root@far", "-u", "1234", "--setenv=A=x  y", "--", userns, "sh", "-c", `id -u; echo "$A"; printf '<%s>' "$@"; exit 3`, "sh"}, odd...)...)
	want := "1234\nx  y\n<" + strings.Join(odd, "><") + ">"
	if got.code != 3 || got.stdout != want || got.stderr != "" {
		t.Errorf("%+v, want %q", got, want)
	}
	binary := "\x00\xff\r\n\x1b]" + strings.Repeat("\x00\x01", 100_000)
	if got := attachWith(t, strings.NewReader(binary), "--host=far", slim, "cat"); got.code != 0 || got.stdout != binary {
		t.Errorf("%d bytes come back of %d, status %d, %s", len(got.stdout), len(binary), got.code, got.stderr)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-H", "far", "slin", "true"}, 125, "hint: did you mean slim?"},
		{[]string{"-H", "far", slim, "no-such-command"}, 127, "command not found"},
		{[]string{"-H", "far", slim, "sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"-H", "-oProxyCommand=true", slim, "true"}, 125, "is no host"},
	} {
		if got := attachTo(t, c.args...); got.code != c.code || !strings.Contains(got.stderr, c.want) {
			t.Errorf("%q: %+v", c.args, got)
		}
	}
	// On a terminal here, the command has one there.
	out := must(t, "script", "--quiet", "--return", "--command", "stty rows 33 columns 99; cntr-attach -H far "+slim+" sh -c 'tty; stty size'", os.DevNull)
	// script(1) tells its terminal of the end of its own input, as often as it finds it, and the terminal may echo that.
	if got := strings.NewReplacer("\r", "", "^@", "").Replace(out); !strings.Contains(got, "/dev/pts/0\n33 99") {
		t.Errorf("on a terminal: %q", got)
	}
}
