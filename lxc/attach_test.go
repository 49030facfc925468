//go:build integration

package lxc

import (
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/machine"
)

func attach(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, append([]string{"cntr-attach"}, args...)...)
}

func TestAttach(t *testing.T) {
	for _, c := range []container{privileged(t, "test-p"), mapped(t, "test-m"), users(t, "test-u")} {
		t.Run(c.name, func(t *testing.T) {
			c.t = t
			if got := attach(t, c.ref(), "hostname"); got != c.name {
				t.Errorf("hostname %q", got)
			}
			if got := attach(t, c.ref(), "id", "-u"); got != "0" {
				t.Errorf("uid %s", got)
			}
			if got := attach(t, "--direct", c.ref(), "hostname"); got != c.name {
				t.Errorf("--direct: hostname %q", got)
			}
			if o := run(t, "cntr-attach", c.ref(), "sh", "-c", "exit 7"); o.code != 7 {
				t.Errorf("exit status %d: %s", o.code, o.stderr)
			}
			for _, ns := range []string{"cgroup", "ipc", "net", "pid", "time", "user", "uts"} {
				want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.pid(), ns))
				if err != nil {
					t.Fatal(err)
				}
				if got := attach(t, c.ref(), "readlink", "/proc/self/ns/"+ns); got != want {
					t.Errorf("%s namespace %s, want %s", ns, got, want)
				}
			}
			if got := attach(t, c.ref(), "ls", "/var/lib/cntr/usr/bin"); got != "slim" {
				t.Errorf("the container's own programs are %q", got)
			}
			trace := attach(t, c.ref(), "--", "gdb", "-p", "1", "-batch", "-ex", "bt")
			for _, want := range []string{"wait_for_work (server=", "/usr/src/slim/slim.c:", "in main ()"} {
				if !strings.Contains(trace, want) {
					t.Errorf("gdb's backtrace lacks %q:\n%s", want, trace)
				}
			}
		})
	}
}

func TestAttachToAFullContainer(t *testing.T) {
	c := create(t, "/var/lib/lxc", "test-full", 0, "lxc.init.cmd = /sbin/init")
	must(t, "cp", "-a", "--reflink=auto", "/var/lib/machines/deb/usr", "/var/lib/machines/deb/etc",
		"/var/lib/machines/deb/var", "/var/lib/machines/deb/bin", "/var/lib/machines/deb/sbin", c.path+"/"+c.name+"/rootfs/")
	c.start()
	if got := attach(t, c.ref(), "cat", "/proc/1/comm"); got != "systemd" {
		t.Errorf("process 1 is %q", got)
	}
	if got := attach(t, c.ref(), "grep", "PRETTY", "/var/lib/cntr/etc/os-release"); !strings.Contains(got, "Debian") {
		t.Errorf("os-release: %q", got)
	}
}

func TestSessionEndsWithItsContainer(t *testing.T) {
	for _, c := range []container{privileged(t, "test-p"), mapped(t, "test-m"), users(t, "test-u")} {
		cmd := exec.Command("cntr-attach", c.ref(), "sh", "-c", "echo ready; exec sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		ready := make([]byte, len("ready\n"))
		_, err = out.Read(ready)
		go func() { done <- cmd.Wait() }()
		if err != nil || string(ready) != "ready\n" {
			t.Fatalf("%q, %v", ready, err)
		}
		leader := c.hold()
		c.kill()
		if !leader.Wait(patience) {
			t.Fatal("the leader does not end")
		}
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the session goes on", c.name)
			_ = cmd.Process.Kill()
		}
	}
}

func TestMessages(t *testing.T) {
	create(t, "/var/lib/lxc", "test-stopped", 0)
	create(t, "/var/lib/lxc", "slim", 0).start()
	users(t, "test-u")
	for _, c := range []struct{ name, message, hint string }{
		{"test-stopped", `LXC container "test-stopped" is not running`, "start it: lxc-start -n test-stopped"},
		{"lxc:test-stopped", `LXC container "test-stopped" is not running`, "start it: lxc-start -n test-stopped"},
		{"slim", `more than one machine is called "slim"`, "say which: nspawn:slim or lxc:slim"},
		{"test-u", `no machine is called "test-u"`, "did you mean test-u@alice"},
	} {
		o := run(t, "cntr-attach", c.name, "true")
		if o.code != 125 || !strings.Contains(o.stderr, c.message) || !strings.Contains(o.stderr, "hint: "+c.hint) {
			t.Errorf("%s: exit status %d, %s", c.name, o.code, o.stderr)
		}
	}
}

// Of what is installed, only the service is linked to liblxc: what runs in a machine is not.
func TestWhoIsLinkedToLiblxc(t *testing.T) {
	for _, c := range []struct {
		program string
		want    bool
	}{
		{"/usr/lib/cntr-attach/cntr-attachd", true},
		{"/usr/lib/cntr-attach/cntr-session", false},
		{"/usr/lib/cntr-attach/cntr-direct", false},
		{"/usr/bin/cntr-attach", false},
	} {
		info, err := buildinfo.ReadFile(c.program)
		if err != nil {
			t.Fatal(err)
		}
		imports := slices.ContainsFunc(info.Deps, func(m *debug.Module) bool { return m.Path == "github.com/lxc/go-lxc" })
		f, err := elf.Open(c.program)
		if err != nil {
			t.Fatal(err)
		}
		libraries, err := f.ImportedLibraries()
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		links := slices.ContainsFunc(libraries, func(l string) bool { return strings.HasPrefix(l, "liblxc.") })
		if imports != c.want || links != c.want {
			t.Errorf("%s: imports go-lxc: %v, needs %q", c.program, imports, libraries)
		}
	}
}

// A leader that was resolved is not mistaken for one that has its number later.
func TestLeaderOutlivesItsContainer(t *testing.T) {
	c := privileged(t, "test-p")
	m, err := NewResolver().Resolve(bounded(t), c.name)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c.kill()
	if !m.Leader.Wait(patience) {
		t.Fatal("the leader does not end")
	}
	if l, err := machine.OpenLeader(m.Leader.PID); err == nil {
		_ = l.Close()
		t.Log("process " + strconv.Itoa(m.Leader.PID) + " is already another")
	}
	o := run(t, "cntr-attach", c.ref(), "true")
	if o.code != 125 || !strings.Contains(o.stderr, "is not running") {
		t.Errorf("exit status %d, %s", o.code, o.stderr)
	}
}
