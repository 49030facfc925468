package machine

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// known is a resolver whose machines all have this process as their leader.
type known struct {
	kind  string
	names []string
	err   error // what it answers instead, if anything
}

func (k known) Kind() string { return k.kind }

func (k known) Resolve(_ context.Context, name string) (*Machine, error) {
	if k.err != nil {
		return nil, k.err
	}
	for _, n := range k.names {
		if n == name {
			leader, err := OpenLeader(os.Getpid())
			return &Machine{Kind: k.kind, Name: name, Leader: leader}, err
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
	registry := Registry{known{kind: "nspawn", names: []string{"web", "db"}}, known{kind: "lxc", names: []string{"web", "mail"}}}
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
		{registry, "we", "", fail.NoSuchMachine, []string{"did you mean web?"}},
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
