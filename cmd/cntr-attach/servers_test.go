//go:build integration

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// bring copies a program of the host, and the libraries that it is linked to, into a machine's root directory.
func bring(t *testing.T, root, program string) {
	t.Helper()
	libraries := runCommand(t, nil, "ldd", program) // fails for a static one
	for _, file := range append(regexp.MustCompile(`/\S+`).FindAllString(libraries.stdout, -1), program) {
		must(t, "mkdir", "-p", filepath.Dir(root+file))
		must(t, "cp", "--dereference", "--reflink=auto", strings.TrimSuffix(file, ":"), root+file)
	}
}

// withLoopback is a script for a machine whose programs talk to each other.
const withLoopback = `ip link set lo up; mount -t proc proc "$1/proc"`

// pivoted is one for a machine whose root directory is that of its mount namespace, as a container's is.
const pivoted = `mount --bind "$1" "$1"; cd "$1"; mount -t proc proc proc; pivot_root . old; shift; exec "$@"`

// Clients of the host find a server of the machine where it listens: at its sockets in /run and /tmp, and on its addresses.
func TestClientsReachTheMachinesServer(t *testing.T) {
	const server = "/usr/bin/redis-server"
	for _, socket := range []string{"/run/redis.sock", "/tmp/redis.sock"} {
		machine := startOddMachine(t, func(root string) {
			bring(t, root, server)
			must(t, "mkdir", "-p", root+"/proc", root+"/run", root+"/tmp", root+"/var/lib/redis")
		}, withLoopback, server, "--port", "6379", "--unixsocket", socket, "--save", "", "--dir", "/var/lib/redis",
			"--locale-collate", "C")
		out := succeeds(t, machine, "sh", "-c", `until redis-cli -s `+socket+` ping >/dev/null 2>&1; do sleep 0.01; done
			redis-cli -s `+socket+` set key value; redis-cli -h 127.0.0.1 get key; redis-cli -s `+socket+` info server | grep -c ^process_id:1.$`)
		if out != "OK\nvalue\n1\n" {
			t.Errorf("%s: got %q", socket, out)
		}
	}
}

// nameServer answers each question about a name with 192.0.2.53, and says which it was.
const nameServer = `
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    question, who = s.recvfrom(512)
    end = question.index(b"\0", 12) + 5
    a = question[end - 4:end - 2] == b"\0\1"
    answer = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if a else b"\0\0") + b"\0\0\0\0" + question[12:end]
    if a:
        answer += b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([192, 0, 2, 53])
    s.sendto(answer, who)
`

// Names are looked up as the machine looks them up: with its resolv.conf, in its network.
func TestNamesAreLookedUpWithTheMachinesServer(t *testing.T) {
	machine := startOddMachine(t, func(root string) {
		must(t, "mkdir", "-p", root+"/proc", root+"/etc")
		if err := os.WriteFile(root+"/etc/resolv.conf", []byte("search machine\nnameserver 127.0.0.1\noptions attempts:1 timeout:5\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}, withLoopback)
	server := start(t, machine, "python3", "-c", nameServer)
	if got := server.line(); got != "ready" {
		t.Fatalf("got %q", got)
	}
	for _, mode := range []string{"--quiet", "--direct"} {
		for _, name := range []string{"db.machine", "db"} {
			if out := succeeds(t, mode, machine, "getent", "hosts", name); !strings.HasPrefix(out, "192.0.2.53 ") {
				t.Errorf("%s: %s is %q", mode, name, out)
			}
		}
	}
}

// A program in Go that runs in the machine is debugged.
func TestDelveAttachesToTheMachinesProgram(t *testing.T) {
	machine := startOddMachine(t, func(root string) {
		must(t, "mkdir", "-p", root+"/proc", root+"/usr/bin")
		must(t, "cp", "/usr/lib/testhost/ticker", root+"/usr/bin/ticker")
	}, withLoopback, "/usr/bin/ticker")
	o := attachWith(t, strings.NewReader("break main.wait\ncontinue\nstack\nprint main.count > 0\nexit\nn\n"), machine, "--",
		"dlv", "attach", "--check-go-version=false", "--allow-non-terminal-interactive=true", "1")
	for _, want := range []string{"main.wait()", "main.main", "ticker.go:13", "true\n"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("no %q in %+v", want, o)
		}
	}
	if out := succeeds(t, machine, "cat", "/proc/1/comm"); out != "ticker\n" {
		t.Errorf("the program is gone: %q", out)
	}
}

// The stack of a program that an interpreter runs in the machine is seen, in the interpreter's terms.
func TestAustinSeesTheMachinesPython(t *testing.T) {
	python := must(t, "readlink", "--canonicalize", "/usr/bin/python3")
	machine := startOddMachine(t, func(root string) {
		bring(t, root, python)
		must(t, "mkdir", "-p", root+"/proc", root+"/old", root+"/usr/lib", root+"/srv")
		must(t, "cp", "--archive", "--reflink=auto", "/usr/lib/"+filepath.Base(python), root+"/usr/lib/")
		text := "import time\ndef wait_for_work():\n    while True:\n        time.sleep(0.01)\ndef serve():\n    wait_for_work()\nserve()\n"
		if err := os.WriteFile(root+"/srv/service.py", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}, pivoted, python, "/srv/service.py")
	out := succeeds(t, machine, "austin", "--interval=10ms", "--exposure=1", "--pid=1")
	if !regexp.MustCompile(`service\.py:serve:6;.*service\.py:wait_for_work:4`).MatchString(out) {
		t.Errorf("got %s", out)
	}
}

// What a user has of tools of their own, in a home directory that nobody else may enter, is there in their session.
func TestToolsInTheCallersHome(t *testing.T) {
	own := startCommand(t, "runuser", "-u", "alice", "--", "unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc",
		"sh", "-c", "echo ready; read end")
	defer own.stdin.Close()
	if got := own.line(); got != "ready" {
		t.Fatalf("got %q: %s", got, &own.stderr)
	}
	pid := must(t, "pgrep", "--parent", must(t, "pgrep", "--parent", fmt.Sprint(own.cmd.Process.Pid), "unshare"))
	must(t, "chmod", "700", "/home/alice")
	must(t, "runuser", "-u", "alice", "--", "sh", "-euc", `cd /home/alice; mkdir -p bin; printf '#!/bin/sh\necho mine\n' >bin/cntr-own-tool
		chmod 700 bin/cntr-own-tool; python3 -m venv --without-pip venv`)
	t.Cleanup(func() { must(t, "rm", "-r", "/home/alice/bin", "/home/alice/venv") })
	o := runCommand(t, nil, "runuser", "-u", "alice", "--", "env", "HOME=/home/alice", "PATH=/home/alice/bin:/home/alice/venv/bin:/usr/bin:/bin",
		"cntr-attach", "--no-ask-password", "pid:"+pid, "sh", "-c", "cntr-own-tool; python -c 'import sys; print(sys.prefix)'; cat /etc/shadow")
	if o.stdout != "mine\n/home/alice/venv\n" || o.code == 0 {
		t.Errorf("got %+v", o)
	}
}
