//go:build integration

package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/lxc/monitor"
	"github.com/cntr-attach/cntr-attach/nspawn"
)

// resolved checks that a name leads to a container.
func resolved(t *testing.T, r machine.Resolver, name string, want int) {
	t.Helper()
	m, err := r.Resolve(bounded(t), name)
	if err != nil {
		t.Errorf("%s: %v (hint: %s)", name, err, fail.From(err).Hint)
		return
	}
	defer m.Close()
	if m.Kind != "lxc" || m.Name != name || m.Class != "container" || m.Service != "lxc" {
		t.Errorf("%s is %+v", name, m)
	}
	if m.Leader.PID != want || !m.Leader.Alive() {
		t.Errorf("%s: leader %d, want %d", name, m.Leader.PID, want)
	}
}

// refused checks that a name leads to nothing.
func refused(t *testing.T, r machine.Resolver, name string, code fail.Code, hint string) {
	t.Helper()
	m, err := r.Resolve(bounded(t), name)
	if err == nil {
		_ = m.Close()
	}
	if !fail.Is(err, code) || !strings.Contains(fail.From(err).Hint, hint) {
		t.Errorf("%.30s: %v (hint: %s), want %s and %q", name, err, fail.From(err).Hint, code, hint)
	}
}

func TestEachKindOfContainer(t *testing.T) {
	p, m, u := privileged(t, "test-p"), mapped(t, "test-m"), users(t, "test-u")
	exotic := create(t, monitor.SystemPath, "test @ é", 0)
	exotic.start()
	for kind, r := range resolvers() {
		t.Run(kind, func(t *testing.T) {
			resolved(t, r, "test-p", p.pid())
			resolved(t, r, "test-m", m.pid())
			resolved(t, r, "test-u@alice", u.pid())
			resolved(t, r, "test @ é", exotic.pid())
			refused(t, r, "test-u", fail.NoSuchMachine, "did you mean lxc:test-u@alice?")
			list, err := r.List(bounded(t))
			if err != nil {
				t.Error(err)
			}
			var got []string
			for _, i := range list {
				got = append(got, i.Name)
				if i.Leader <= 0 || i.Kind != "lxc" || i.Class != "container" {
					t.Errorf("%+v", i)
				}
			}
			if want := []string{"test @ é", "test-m", "test-p", "test-u@alice"}; !slices.Equal(got, want) {
				t.Errorf("listed %q, want %q", got, want)
			}
		})
	}
	found, err := NewResolver().Resolve(bounded(t), "test-p")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if found.Root != filepath.Join(monitor.SystemPath, "test-p", "rootfs") {
		t.Errorf("root %q", found.Root)
	}
}

func TestNotRunning(t *testing.T) {
	c := create(t, monitor.SystemPath, "test-stopped", 0)
	r := NewResolver()
	refused(t, r, c.name, fail.NotRunning, "lxc-start -n test-stopped")
	refused(t, monitor.Resolver{}, c.name, fail.NoSuchMachine, "lxc-ls")
	for _, name := range []string{"test-none", "deb", ".", "..", "...", "config", strings.Repeat("x", 300), "a b", "web@", "@web", "@"} {
		refused(t, r, name, fail.NoSuchMachine, "")
	}
	refused(t, r, "web@alice", fail.NoSuchMachine, "as alice")
	c.start()
	resolved(t, r, c.name, c.pid())
	c.kill()
	refused(t, r, c.name, fail.NotRunning, "lxc-start")
}

// liblxc would remove it: lxc-create holds a lock on the file as long as it works.
func TestLooksAtNoHalfMadeContainer(t *testing.T) {
	c := privileged(t, "test-partial")
	partial := filepath.Join(c.path, c.name, "partial")
	if err := os.WriteFile(partial, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, NewResolver(), c.name, fail.NotRunning, "")
	if _, err := os.Stat(filepath.Join(c.path, c.name, "config")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(partial); err != nil {
		t.Fatal(err)
	}
	resolved(t, NewResolver(), c.name, c.pid())
}

func TestFrozen(t *testing.T) {
	c := privileged(t, "test-frozen")
	if o := c.tool("lxc-freeze"); o.code != 0 {
		t.Fatalf("lxc-freeze: %s", o.stderr)
	}
	defer c.tool("lxc-unfreeze")
	resolved(t, NewResolver(), c.name, c.pid())
}

func TestOtherPathsOfRoot(t *testing.T) {
	elsewhere := create(t, "/srv/lxc", "test-elsewhere", 0)
	elsewhere.start()
	// Where somebody else can write: liblxc is not asked.
	shared := create(t, "/tmp/lxc", "test-shared", 0)
	shared.start()
	for _, r := range resolvers() {
		resolved(t, r, "test-elsewhere", elsewhere.pid())
		resolved(t, r, "test-shared", shared.pid())
	}
	create(t, monitor.SystemPath, "test-shared", 0).start()
	for _, r := range resolvers() {
		refused(t, r, "test-shared", fail.AmbiguousMachine, "pid:N")
	}
}

// A name that does not fit in a socket's address is replaced by a hash.
func TestLongNames(t *testing.T) {
	for _, n := range []int{84, 85, 150} {
		c := create(t, monitor.SystemPath, strings.Repeat("x", n), 0)
		c.start()
		for _, r := range resolvers() {
			resolved(t, r, c.name, c.pid())
		}
		c.kill()
		refused(t, NewResolver(), c.name, fail.NotRunning, "")
	}
}

// listenAs listens on an abstract socket as another user would.
func listenAs(t *testing.T, uid int, address string, backlog int) {
	t.Helper()
	result := make(chan error)
	var fd int
	go func() {
		// The credentials are this thread's only; it ends with the goroutine.
		runtime.LockOSThread()
		var err error
		defer func() { result <- err }()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			err = e
			return
		}
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + address}), unix.Listen(fd, backlog))
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
}

// The names of sockets can be had by anybody.
func TestUserTakesTheNameOfARootContainer(t *testing.T) {
	c := create(t, monitor.SystemPath, "test-taken", 0)
	listenAs(t, alice, monitor.SystemPath+"/test-taken/command", 100)
	r := NewResolver()
	refused(t, r, c.name, fail.NotRunning, "")
	refused(t, monitor.Resolver{}, c.name, fail.NoSuchMachine, "")
	for _, r := range resolvers() {
		refused(t, r, "test-taken@alice", fail.NotRunning, "")
		if list, err := r.List(bounded(t)); len(list) != 0 || err != nil {
			t.Errorf("%v, %v", list, err)
		}
	}
}

// A user who makes any number of sockets keeps nobody from finding root's containers.
func TestUserClaimsALot(t *testing.T) {
	for i := range 300 {
		listenAs(t, alice, filepath.Join("/home/alice", strings.Repeat("x", i%20+1), string(rune('a'+i/20)), "command"), 100)
	}
	// One that accepts nothing any more.
	listenAs(t, alice, "/home/alice/lxc/full/command", 0)
	for range 3 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		_ = unix.Connect(fd, &unix.SockaddrUnix{Name: "@/home/alice/lxc/full/command"}) // until it is full
	}
	if _, err := NewResolver().Resolve(bounded(t), "full@alice"); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("one that accepts nothing: %v", err)
	}
	c := privileged(t, "test-p")
	for kind, r := range resolvers() {
		begin := time.Now()
		list, err := r.List(bounded(t))
		if len(list) != 1 || err != nil || time.Since(begin) > time.Second {
			t.Errorf("%s: %v, %v after %v", kind, list, err, time.Since(begin))
		}
		resolved(t, r, c.name, c.pid())
	}
}

// hung asks for a container whose monitor is stopped.
func hung(t *testing.T, r machine.Resolver, name string) {
	t.Helper()
	begin := time.Now()
	m, err := r.Resolve(bounded(t), name)
	if err == nil {
		_ = m.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 2*time.Second {
		t.Errorf("%s: %v after %v, want no answer", name, err, time.Since(begin))
	}
}

func TestHangingMonitor(t *testing.T) {
	c, other := privileged(t, "test-hangs"), privileged(t, "test-other")
	r := NewResolver()
	resolved(t, r, c.name, c.pid())
	pid := c.pid()
	c.stopMonitor()
	hung(t, r, c.name)
	// The other is not concerned, and many who ask cost no more than one.
	resolved(t, r, other.name, other.pid())
	threads := count(t, "/proc/self/task")
	var all sync.WaitGroup
	for range 50 {
		all.Add(1)
		go func() {
			defer all.Done()
			hung(t, r, c.name)
		}()
	}
	all.Wait()
	if n := count(t, "/proc/self/task"); n > threads+mostCalls {
		t.Errorf("%d threads, %d before", n, threads)
	}
	list, err := r.List(bounded(t))
	if len(list) != 1 || list[0].Name != other.name || err == nil || !strings.Contains(err.Error(), c.name) {
		t.Errorf("listed %v, %v", list, err)
	}
	// The kernel does not need its answer.
	resolved(t, monitor.Resolver{}, c.name, pid)
	if err := unix.Kill(parentOf(t, pid), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	resolved(t, r, c.name, pid)
}

// Among others a container whose monitor hangs delays nobody.
func TestHangingMonitorDelaysNobody(t *testing.T) {
	c := create(t, monitor.SystemPath, "slim", 0)
	c.start()
	c.stopMonitor()
	machined := &nspawn.Resolver{}
	defer machined.Close()
	begin := time.Now()
	m, failed, err := machine.Registry{NewResolver(), machined}.Find(bounded(t), "slim")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Ref() != "nspawn:slim" || len(failed) != 1 || failed[0].Kind != "lxc" || time.Since(begin) > time.Second {
		t.Errorf("%s, %v after %v", m.Ref(), failed, time.Since(begin))
	}
}

func TestAmbiguousWithNspawn(t *testing.T) {
	create(t, monitor.SystemPath, "slim", 0).start()
	machined := &nspawn.Resolver{}
	defer machined.Close()
	_, err := machine.Registry{NewResolver(), machined}.Resolve(bounded(t), "slim")
	if !fail.Is(err, fail.AmbiguousMachine) || fail.From(err).Hint != "say which: lxc:slim or nspawn:slim" {
		t.Errorf("%v (hint: %s)", err, fail.From(err).Hint)
	}
}

// Containers end and start while they are resolved: what is found is always the container's own process.
func TestResolveWhileContainersEnd(t *testing.T) {
	c := create(t, monitor.SystemPath, "test-churn", 0)
	for range 10 {
		c.start()
		pid := c.pid()
		var all sync.WaitGroup
		for kind, r := range resolvers() {
			all.Add(1)
			go func() {
				defer all.Done()
				for deadline := time.Now().Add(patience); ; {
					m, err := r.Resolve(bounded(t), c.name)
					if fail.Is(err, fail.NotRunning) || fail.Is(err, fail.NoSuchMachine) {
						return
					}
					if err != nil {
						t.Errorf("%s: %v", kind, err)
						return
					}
					if m.Leader.PID != pid {
						t.Errorf("%s: process %d, not %d", kind, m.Leader.PID, pid)
					}
					_ = m.Close()
					if time.Now().After(deadline) {
						t.Errorf("%s: resolved after its end", kind)
						return
					}
				}
			}()
		}
		c.kill()
		all.Wait()
	}
}

func TestLeaksNothing(t *testing.T) {
	c, u := privileged(t, "test-leak"), users(t, "test-u")
	create(t, monitor.SystemPath, "test-stopped", 0)
	r, ctx := NewResolver(), t.Context() // not one with a clean-up for each question
	once := func() {
		for _, name := range []string{c.name, u.name + "@alice"} {
			m, err := r.Resolve(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			_ = m.Close()
		}
		for _, name := range []string{"test-none", "test-stopped"} {
			if m, err := r.Resolve(ctx, name); err == nil {
				_ = m.Close()
				t.Fatalf("%s was resolved", name)
			}
		}
		if _, err := r.List(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		once()
	}
	fds, before := count(t, "/proc/self/fd"), memory(t)
	for range 600 {
		once()
	}
	if n := count(t, "/proc/self/fd"); n > fds {
		t.Errorf("%d descriptors, %d before:\n%s", n, fds, must(t, "ls", "-l", fmt.Sprintf("/proc/%d/fd", os.Getpid())))
	}
	// A container that is not released is some 10 KiB.
	if n := memory(t); n > before+12<<10 {
		t.Errorf("%d KiB of memory, %d before", n, before)
	}
}

func BenchmarkResolve(b *testing.B) {
	create(b, monitor.SystemPath, "test-p", 0).start()
	create(b, monitor.SystemPath, "test-q", 0).start()
	for kind, r := range resolvers() {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				m, err := r.Resolve(b.Context(), "test-p")
				if err != nil {
					b.Fatal(err)
				}
				_ = m.Close()
			}
		})
		b.Run(kind+"-list", func(b *testing.B) {
			for b.Loop() {
				if _, err := r.List(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
