//go:build integration

package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// patience bounds every wait of a test.
const patience = 30 * time.Second

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newSystemd(t *testing.T) *Systemd {
	t.Helper()
	s, err := Connect(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(bounded(t), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// child is a process of this test's that can be put into a scope.
type child struct {
	*exec.Cmd
	pidfd *os.File
	ended chan struct{}
}

func startChild(t *testing.T, args ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(args[0], args[1:]...), ended: make(chan struct{})}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(c.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.pidfd = os.NewFile(uintptr(fd), "pidfd")
	go func() { _ = c.Wait(); close(c.ended) }()
	t.Cleanup(func() { _ = c.Process.Kill(); <-c.ended; _ = c.pidfd.Close() })
	return c
}

func (c *child) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(patience):
		t.Fatal("the process does not end")
	}
}

func (c *child) scope(id string) Scope {
	return Scope{
		Name: ScopeName("units-test", id), Description: "A test of scopes", Slice: "cntr.slice",
		PIDFD: c.pidfd, PID: c.Process.Pid,
	}
}

func TestScope(t *testing.T) {
	for name, prepare := range map[string]func(*Systemd){
		"by pidfd":  func(*Systemd) {},
		"by number": func(s *Systemd) { s.withoutPIDFDs.Store(true) }, // as with systemd before v255
	} {
		t.Run(name, func(t *testing.T) {
			s := newSystemd(t)
			prepare(s)
			c := startChild(t, "sleep", "infinity")
			scope := c.scope("00000001")
			if err := s.StartScope(bounded(t), scope); err != nil {
				t.Fatal(err)
			}
			cgroup := "/cntr.slice/" + scope.Name
			in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Process.Pid))
			if err != nil || !strings.Contains(string(in), ":"+cgroup+"\n") {
				t.Errorf("the process is in %q, %v", in, err)
			}
			if got, err := s.ControlGroup(bounded(t), scope.Name); err != nil || got != cgroup {
				t.Errorf("ControlGroup = %q, %v", got, err)
			}
			if got, err := s.ControlGroup(bounded(t), "cntr.slice"); err != nil || got != "/cntr.slice" {
				t.Errorf("ControlGroup of the slice = %q, %v", got, err)
			}
			shown := run(t, "systemctl", "show", scope.Name, "--property=Description,Slice,CollectMode,TimeoutStopUSec,SendSIGHUP,Delegate")
			for _, want := range []string{
				"Description=A test of scopes", "Slice=cntr.slice", "CollectMode=inactive-or-failed",
				"TimeoutStopUSec=10s", "SendSIGHUP=yes", "Delegate=no",
			} {
				if !strings.Contains(shown, want+"\n") && !strings.HasSuffix(shown, want) {
					t.Errorf("%s is missing in\n%s", want, shown)
				}
			}
			if err := s.StopUnit(bounded(t), scope.Name); err != nil {
				t.Error(err)
			}
			c.awaitEnd(t)
			if got, err := s.ControlGroup(bounded(t), scope.Name); err != nil || got != "" {
				t.Errorf("after StopUnit, ControlGroup = %q, %v", got, err)
			}
			if err := s.StopUnit(bounded(t), scope.Name); err != nil {
				t.Errorf("stopping it again: %v", err)
			}
		})
	}
}

// Without a bus, systemd is spoken to over its own socket.
func TestScopeWithoutBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	s := newSystemd(t)
	c := startChild(t, "sleep", "infinity")
	scope := c.scope("00000002")
	if err := s.StartScope(bounded(t), scope); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ControlGroup(bounded(t), scope.Name); err != nil || got != "/cntr.slice/"+scope.Name {
		t.Errorf("ControlGroup = %q, %v", got, err)
	}
	if err := s.StopUnit(bounded(t), scope.Name); err != nil {
		t.Error(err)
	}
	c.awaitEnd(t)
}

func TestScopeErrors(t *testing.T) {
	s := newSystemd(t)
	ended := startChild(t, "true")
	ended.awaitEnd(t)
	if err := s.StartScope(bounded(t), ended.scope("00000004")); err == nil {
		t.Error("a scope for a process that has ended")
	} else {
		t.Logf("ended: %v", err)
	}
	c := startChild(t, "sleep", "infinity")
	bad := c.scope("00000005")
	bad.Name = "cntr test.scope"
	if err := s.StartScope(bounded(t), bad); err == nil {
		t.Error("a scope with a space in its name")
	} else {
		t.Logf("name: %v", err)
	}
	there := c.scope("00000006")
	if err := s.StartScope(bounded(t), there); err != nil {
		t.Fatal(err)
	}
	other := startChild(t, "sleep", "infinity").scope("00000006")
	if err := s.StartScope(bounded(t), other); !fail.Is(err, fail.LimitsExceeded) || !strings.Contains(err.Error(), there.Name) {
		t.Errorf("a scope that exists already: %v", err)
	}
	if err := s.StopUnit(bounded(t), there.Name); err != nil {
		t.Error(err)
	}
	c = startChild(t, "sleep", "infinity")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.StartScope(cancelled, c.scope("00000007")); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that was cancelled: %v", err)
	}
}

func TestManyScopesAtOnce(t *testing.T) {
	s := newSystemd(t)
	var wg sync.WaitGroup
	for i := range 20 {
		c := startChild(t, "sleep", "infinity")
		wg.Add(1)
		go func() {
			defer wg.Done()
			scope := c.scope(fmt.Sprintf("%08x", 100+i))
			if err := s.StartScope(bounded(t), scope); err != nil {
				t.Error(err)
				return
			}
			if err := s.StopUnit(bounded(t), scope.Name); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
}

func BenchmarkScope(b *testing.B) {
	s, err := Connect(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		cmd := exec.Command("sleep", "infinity")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			b.Fatal(err)
		}
		pidfd := os.NewFile(uintptr(fd), "pidfd")
		b.StartTimer()
		err = s.StartScope(b.Context(), Scope{
			Name: ScopeName("bench", fmt.Sprintf("%08x", i)), Slice: "cntr.slice",
			PIDFD: pidfd, PID: cmd.Process.Pid,
		})
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = pidfd.Close()
		b.StartTimer()
	}
}
