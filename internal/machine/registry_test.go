package machine

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// known is a resolver whose machines all have one process as their leader.
type known struct {
	kind  string
	names []string
	err   error // what it answers instead, if anything
	pid   int   // the leader; 0 is this process
	id    string
}

func (k known) Kind() string { return k.kind }

func (k known) Resolve(_ context.Context, name string) (*Machine, error) {
	if k.err != nil {
		return nil, k.err
	}
	for _, n := range k.names {
		if n == name || k.id != "" && strings.HasPrefix(k.id, name) {
			leader, err := OpenLeader(cmp.Or(k.pid, os.Getpid()))
			return &Machine{Kind: k.kind, Name: n, Leader: leader}, err
		}
	}
	return nil, fail.New(fail.NoSuchMachine, "", "none")
}

func (k known) List(context.Context) ([]Info, error) {
	var list []Info
	for _, n := range k.names {
		list = append(list, Info{Kind: k.kind, Name: n})
	}
	return list, k.err
}

func TestResolve(t *testing.T) {
	stopped := fail.New(fail.NotRunning, "start it", "stopped")
	broken := errors.New("no machined")
	registry := Registry{known{kind: "nspawn", names: []string{"web", "db"}}, known{kind: "lxc", names: []string{"web", "mail"}, pid: 1}}
	for _, c := range []struct {
		registry  Registry
		name      string
		want      string // typed name, or else
		code      fail.Code
		hintParts []string
	}{
		{registry, "db", "nspawn:db", "", nil},
		{registry, "mail", "lxc:mail", "", nil},
		{registry, "lxc:web", "lxc:web", "", nil},
		{registry, "web", "", fail.AmbiguousMachine, []string{"nspawn:web", "lxc:web"}},
		{registry, "nspawn:mail", "", fail.NoSuchMachine, []string{"running: db, web"}},
		{registry, "we", "", fail.NoSuchMachine, []string{"did you mean lxc:web or nspawn:web?"}},
		{registry, "nspawn:we", "", fail.NoSuchMachine, []string{"did you mean web?"}},
		{registry, "mial2", "", fail.NoSuchMachine, nil},
		{registry, "mai", "", fail.NoSuchMachine, []string{"did you mean mail?"}},
		{registry, "docker:web", "", fail.InvalidArgument, []string{"nspawn, lxc"}},
		{registry, "", "", fail.InvalidArgument, nil},
		{Registry{known{kind: "nspawn"}}, "web", "", fail.NoSuchMachine, []string{"no machine is running"}},
		{Registry{known{kind: "a", err: stopped}, known{kind: "b"}}, "web", "", fail.NotRunning, []string{"start it"}},
		{Registry{known{kind: "a", err: broken}, known{kind: "b", names: []string{"web"}}}, "web", "b:web", "", nil},
	} {
		m, err := c.registry.Resolve(t.Context(), c.name)
		if err == nil {
			if m.Ref() != c.want {
				t.Errorf("%q is %s, want %q", c.name, m.Ref(), c.want)
			}
			_ = m.Close()
			continue
		}
		if c.want != "" || !fail.Is(err, c.code) {
			t.Errorf("%q: %v, want %s%s", c.name, err, c.want, c.code)
		}
		for _, part := range c.hintParts {
			if hint := fail.From(err).Hint; !strings.Contains(hint, part) {
				t.Errorf("%q: hint %q lacks %q", c.name, hint, part)
			}
		}
	}
}

func TestListTellsWhatItCan(t *testing.T) {
	list, err := Registry{
		known{kind: "nspawn", names: []string{"web", "db"}},
		known{kind: "lxc", err: errors.New("broken")},
	}.List(t.Context())
	if len(list) != 2 || list[0].Name != "db" || list[1].Name != "web" {
		t.Errorf("%v", list)
	}
	if err == nil || !strings.Contains(err.Error(), "lxc") {
		t.Errorf("error %v", err)
	}
}

func TestOneMachineOfTwoNames(t *testing.T) {
	// Two that know the same process know the same machine: the first one names it.
	m, err := Registry{known{kind: "docker", names: []string{"web"}}, known{kind: "k8s", names: []string{"web"}}}.Resolve(t.Context(), "web")
	if err != nil || m.Ref() != "docker:web" {
		t.Fatalf("%v, %v", m, err)
	}
	_ = m.Close()
}

func TestIDs(t *testing.T) {
	registry := Registry{
		known{kind: "docker", names: []string{"web"}, id: "deb4567890123456"},
		known{kind: "nspawn", names: []string{"deb"}, pid: 1},
	}
	for _, c := range []struct{ name, want string }{
		{"deb", "nspawn:deb"}, // not the container whose id happens to begin with it
		{"docker:deb", "docker:web"},
		{"deb456789012", "docker:web"},
		{"deb45678901", ""},
		{"de", ""},
	} {
		m, err := registry.Resolve(t.Context(), c.name)
		if c.want == "" && !fail.Is(err, fail.NoSuchMachine) || c.want != "" && (err != nil || m.Ref() != c.want) {
			t.Errorf("%q: %v, %v, want %s", c.name, m, err, c.want)
		}
		if err == nil {
			_ = m.Close()
		}
	}
}

func TestParseRef(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Ref
		ok   bool
	}{
		{"web", Ref{"", "web"}, true},
		{"nspawn:web", Ref{"nspawn", "web"}, true},
		{"unit:a:b", Ref{"unit", "a:b"}, true},
		{"", Ref{}, false},
		{":", Ref{}, false},
		{":web", Ref{}, false},
		{"nspawn:", Ref{}, false},
		{"a/b", Ref{}, false},
		{"a\nb", Ref{}, false},
		{"a\x00", Ref{}, false},
	} {
		got, err := ParseRef(c.in)
		if got != c.want || (err == nil) != c.ok || err != nil && !fail.Is(err, fail.InvalidArgument) {
			t.Errorf("ParseRef(%q) = %v, %v", c.in, got, err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("nspawn:web")
	f.Add("a:b:c")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseRef(s)
		if err == nil && ref.String() != s {
			t.Errorf("ParseRef(%q) = %+v, which is %q", s, ref, ref)
		}
	})
}

func TestLeader(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLeader(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if !l.Alive() || l.Wait(time.Millisecond) {
		t.Error("it runs, and is taken for ended")
	}
	_ = stdin.Close()
	if !l.Wait(10 * time.Second) {
		t.Error("it does not end")
	}
	// It has ended although nobody has waited for it: a zombie keeps its number.
	if l.Alive() {
		t.Error("a zombie is taken for alive")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if l.Alive() {
		t.Error("it is taken for alive after it was waited for")
	}
}

func TestOpenLeaderOfNobody(t *testing.T) {
	for _, pid := range []int{0, -1, 1 << 30} {
		if l, err := OpenLeader(pid); err == nil {
			_ = l.Close()
			t.Errorf("process %d is there", pid)
		} else if !fail.Is(err, fail.NotRunning) {
			t.Errorf("process %d: %v, want NotRunning", pid, err)
		}
	}
}

// deaf is a resolver that takes no notice of its context, and answers when it is released.
type deaf struct {
	known
	release chan struct{}
	done    chan *Machine // what it has said in the end
}

func newDeaf(kind string, names ...string) deaf {
	return deaf{known{kind: kind, names: names}, make(chan struct{}), make(chan *Machine, 1)}
}

func (d deaf) Resolve(_ context.Context, name string) (*Machine, error) {
	<-d.release
	m, err := d.known.Resolve(context.Background(), name)
	d.done <- m
	return m, err
}

func (d deaf) List(context.Context) ([]Info, error) {
	<-d.release
	return d.known.List(context.Background())
}

// obedient is one that hangs until its context ends.
type obedient struct{ known }

func (obedient) Resolve(ctx context.Context, _ string) (*Machine, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// within reports how long f took, and fails if it was too long.
func within(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	if d := time.Since(begin); d > limit {
		t.Errorf("took %v, more than %v", d, limit)
	}
}

func TestHangingResolverDelaysNobody(t *testing.T) {
	hangs := newDeaf("lxc", "web")
	registry := Registry{hangs, obedient{known{kind: "docker"}}, known{kind: "nspawn", names: []string{"web"}}}
	within(t, 2*secondTimeout, func() {
		m, failed, err := registry.Find(t.Context(), "web")
		if err != nil || m.Ref() != "nspawn:web" {
			t.Fatalf("%v, %v", m, err)
		}
		_ = m.Close()
		if len(failed) != 2 || failed[0].Error() != "lxc did not answer within 0.5 s" ||
			failed[1].Error() != "docker did not answer within 0.5 s" {
			t.Errorf("failed: %v", failed)
		}
	})
	// What comes too late is closed.
	close(hangs.release)
	late := <-hangs.done
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if _, err := late.Leader.File.Stat(); errors.Is(err, os.ErrClosed) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a machine that was found too late stays open")
		}
	}
}

func TestHangingResolverIsNamed(t *testing.T) {
	hangs := newDeaf("lxc")
	defer close(hangs.release)
	broken := known{kind: "docker", err: errors.New("permission denied")}
	registry := Registry{known{kind: "nspawn", names: []string{"web"}}, hangs, broken}
	within(t, bareTimeout+time.Second, func() {
		_, failed, err := registry.Find(t.Context(), "wbe")
		want := `no machine is called "wbe" (lxc did not answer within 2 s; docker: permission denied)`
		if !fail.Is(err, fail.NoSuchMachine) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if hint := fail.From(err).Hint; hint != "did you mean web?" {
			t.Errorf("hint %q", hint)
		}
		if len(failed) != 2 || !errors.Is(failed[0], context.DeadlineExceeded) || failed[1].Kind != "docker" {
			t.Errorf("failed: %v", failed)
		}
	})
	within(t, bareTimeout+time.Second, func() {
		list, err := registry.List(t.Context())
		if len(list) != 1 || err == nil || !strings.Contains(err.Error(), "lxc did not answer within 2 s\ndocker: ") {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestResolversAreAskedAtOnce(t *testing.T) {
	var registry Registry
	for _, kind := range []string{"a", "b", "c", "d"} {
		registry = append(registry, obedient{known{kind: kind}})
	}
	within(t, bareTimeout+time.Second, func() {
		if _, _, err := registry.Find(t.Context(), "web"); !fail.Is(err, fail.NoSuchMachine) {
			t.Error(err)
		}
	})
}

func TestCallerGivesUp(t *testing.T) {
	hangs := newDeaf("lxc")
	defer close(hangs.release)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	within(t, time.Second, func() {
		if _, _, err := (Registry{hangs}).Find(ctx, "web"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestTypedNamesOnly(t *testing.T) {
	registry := Registry{typed{known{kind: "unit", names: []string{"nginx", "web"}}}, known{kind: "lxc", names: []string{"web"}}}
	for _, c := range []struct {
		name, want, hint string
	}{
		{"nginx", "", "did you mean unit:nginx?"},
		{"unit:nginx", "unit:nginx", ""},
		{"web", "lxc:web", ""},
		{"wbe", "", "did you mean lxc:web or unit:web?"},
	} {
		m, err := registry.Resolve(t.Context(), c.name)
		if err == nil {
			_ = m.Close()
			if m.Ref() != c.want {
				t.Errorf("%q is %s, want %q", c.name, m.Ref(), c.want)
			}
			continue
		}
		if c.want != "" || !fail.Is(err, fail.NoSuchMachine) || fail.From(err).Hint != c.hint {
			t.Errorf("%q: %v (hint %q), want hint %q", c.name, err, fail.From(err).Hint, c.hint)
		}
	}
}

// typed is a resolver that a bare name is not asked of.
type typed struct{ known }

func (typed) TypedOnly() {}

func TestSeveralAreThereButCannotBeHad(t *testing.T) {
	registry := Registry{
		known{kind: "a", err: fail.New(fail.NotRunning, "start a", "a is stopped")},
		known{kind: "b", err: fail.New(fail.NotRunning, "start b", "b is stopped")},
		known{kind: "c", err: errors.New("broken")},
	}
	_, failed, err := registry.Find(t.Context(), "web")
	if !fail.Is(err, fail.NotRunning) || err.Error() != "a is stopped, and b is stopped" ||
		fail.From(err).Hint != "start a; or start b" || len(failed) != 1 {
		t.Errorf("%v (hint %q), failed %v", err, fail.From(err).Hint, failed)
	}
}

func TestAdoptLeader(t *testing.T) {
	own, err := OpenLeader(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	l, err := AdoptLeader(own.File)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.PID != os.Getpid() || !l.Alive() {
		t.Errorf("process %d", l.PID)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptLeader(null); err == nil {
		t.Error("/dev/null is a leader")
	}
	if null.Close() == nil {
		t.Error("what was not adopted is still open")
	}
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: new(int)}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptLeader(os.NewFile(uintptr(*cmd.SysProcAttr.PidFD), "pidfd")); !fail.Is(err, fail.NotRunning) {
		t.Errorf("of a process that has ended: %v, want NotRunning", err)
	}
}
