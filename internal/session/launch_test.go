package session

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/ns"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

func TestArgumentsRoundTrip(t *testing.T) {
	want := Info{
		ID: "1f2e3d4c", Machine: "nspawn:web", Class: "container", Service: "systemd-nspawn", Leader: 4711, Owner: 1000,
		User: "root", Image: "docker:tools", Command: []string{"sh", "-c", "--id=faked", "--"}, Writable: true, TTY: true,
		Started: time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC),
	}
	got, err := parseArguments(want.arguments())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// What is left of the room that there was shows as empty arguments, unless it could be cut off.
	want.Command = []string{"printf", "", ""}
	got, err = parseArguments(append(want.arguments(), make([]string, 1000)...))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with empty arguments: got %+v, %v, want %+v", got, err, want)
	}
}

func TestArgumentsHaveRoom(t *testing.T) {
	long := strings.Repeat("ä", 5000)
	i := Info{
		ID: "1f2e3d4c", Machine: "docker:" + long[:255], Class: "container", Service: long, Leader: 1 << 22, Owner: 1<<32 - 1,
		User: long, Image: long, Command: abridged(strings.Split(strings.Repeat("-x ", 5000), " ")), Started: time.Now(),
	}
	if n := len(strings.Join(i.arguments(), " ")); n > argumentsRoom {
		t.Errorf("%d bytes are for what there is room for %d", n, argumentsRoom)
	}
}

func TestParseArgumentsRefuses(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"bash"},
		{programName},
		{programName, "--id=1"},
		{programName, "--leader=x", "--", "sh"},
		{programName, "--started=yesterday", "--", "sh"},
	} {
		if info, err := parseArguments(args); err == nil {
			t.Errorf("%q gave %+v", args, info)
		}
	}
}

func TestAbridged(t *testing.T) {
	if got := abridged([]string{"ls", "-l"}); !reflect.DeepEqual(got, []string{"ls", "-l"}) {
		t.Errorf("a short command was changed: %q", got)
	}
	long := abridged([]string{"sh", "-c", strings.Repeat("ä", 5000), "more"})
	if n := len(strings.Join(long, " ")); n > 1100 || len(long) != 3 || !strings.HasSuffix(long[2], "ä…") {
		t.Errorf("%d bytes are left of a long command, in %d arguments", n, len(long))
	}
	if n := len(strings.Join(abridged(make([]string, 100000)), " ")); n > 1100 {
		t.Errorf("%d bytes are left of a command with many empty arguments", n)
	}
}

func TestPromptNameHasNothingForAShellToRun(t *testing.T) {
	if got := promptName("nspawn:a$(reboot)`x`\\u.b-1"); got != "nspawn:a__reboot__x__u.b-1" {
		t.Errorf("got %q", got)
	}
}

func TestStatus(t *testing.T) {
	for _, test := range []struct {
		line string
		code int
	}{
		{`{"exit":7}`, 7},
		{`{"exit":0,"signal":9}`, 137},
		{`{"error":{"code":"NotRunning","message":"machine \"web\" has stopped"}}`, 125},
		{``, 125},
		{`{"exit":`, 125},
	} {
		if got := status.Read(strings.NewReader(test.line)).ExitCode(); got != test.code {
			t.Errorf("%q: got %d, want %d", test.line, got, test.code)
		}
	}
}

func TestEnvironment(t *testing.T) {
	env, path := environment(request{
		Env: []string{"PATH=/a:/b", "X=1", "X=2", "USER=me", "junk"}, Info: Info{Machine: "nspawn:web"},
	}, account{name: "app", uid: 7, home: "/srv"}, []string{"PATH=/evil", "HOME=/evil", "X=0", "PORT=80", "USER=evil"}, nil)
	want := []string{
		"CNTR_MACHINE=nspawn:web", "HOME=/srv", "LOGNAME=app", "PATH=/a:/b", "PORT=80", "SHELL=/bin/sh",
		"TMUX_TMPDIR=/var/lib/cntr-private", "USER=app", "X=2", "XDG_RUNTIME_DIR=/var/lib/cntr-private",
	}
	if !reflect.DeepEqual(env, want) || !reflect.DeepEqual(path, []string{"/a", "/b"}) {
		t.Errorf("got %q, %q; want %q", env, path, want)
	}
}

func TestEnvironmentOfAnImage(t *testing.T) {
	for _, c := range []struct {
		image           imageRequest
		set             []string
		path, lang, say string
	}{
		{imageRequest{}, nil, "/caller", "caller", "caller"},
		{imageRequest{Path: "/srv/tools"}, nil, "/image", "caller", "/bin/sh"},
		{imageRequest{Path: "/srv/tools"}, []string{"PATH=/set"}, "/set", "caller", "/bin/sh"},
	} {
		var of []string
		if !c.image.isHost() {
			of = []string{"PATH=/image", "LANG=image"}
		}
		env, path := environment(request{
			Image: c.image, CallerEnv: []string{"PATH=/caller", "LANG=caller", "SHELL=caller"}, Env: c.set,
		}, account{name: "root"}, nil, of)
		for _, want := range []string{"PATH=" + c.path, "LANG=" + c.lang, "SHELL=" + c.say} {
			if !slices.Contains(env, want) {
				t.Errorf("%+v: no %s in %q", c.image, want, env)
			}
		}
		if !reflect.DeepEqual(path, []string{c.path}) {
			t.Errorf("%+v: commands are looked for in %q", c.image, path)
		}
	}
}

func TestShownOfAnotherMachine(t *testing.T) {
	host := []ns.Range{{Count: 1<<32 - 1}}
	low := []ns.Range{{Inside: 0, Outside: 100000, Count: 65536}}
	high := []ns.Range{{Inside: 0, Outside: 500000, Count: 1000}, {Inside: 2000, Outside: 900000, Count: 10}}
	for _, c := range []struct {
		tree, session []ns.Range
		want          []fuse.IDRange
	}{
		{host, host, nil},
		{host, low, []fuse.IDRange{{Tree: 0, Session: 100000, Count: 65536}}},
		{low, host, []fuse.IDRange{{Tree: 100000, Session: 0, Count: 65536}}},
		{low, low, []fuse.IDRange{{Tree: 100000, Session: 100000, Count: 65536}}},
		{low, high, []fuse.IDRange{{Tree: 100000, Session: 500000, Count: 1000}, {Tree: 102000, Session: 900000, Count: 10}}},
		{high, low, []fuse.IDRange{{Tree: 500000, Session: 100000, Count: 1000}, {Tree: 900000, Session: 102000, Count: 10}}},
		{[]ns.Range{{Inside: 7, Outside: 1, Count: 1}}, high[1:], []fuse.IDRange{nobody}},
	} {
		if got := shown(c.tree, c.session); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v in %v: got %v, want %v", c.tree, c.session, got, c.want)
		}
	}
}

func TestShownToCaller(t *testing.T) {
	for name, c := range map[string]struct {
		ranges  []ns.Range
		own     []uint32
		command uint32
		want    []fuse.IDRange
	}{
		"a user namespace, as root": {
			[]ns.Range{{Inside: 0, Outside: 100000, Count: 65536}},
			[]uint32{1000},
			0,
			[]fuse.IDRange{{Tree: 1000, Session: 100000, Count: 1}, {Tree: 0, Session: 100000, Count: 1000}, {Tree: 1001, Session: 101001, Count: 64535}},
		},
		"none, as root": {
			[]ns.Range{{Count: 1<<32 - 1}},
			[]uint32{1000},
			0,
			[]fuse.IDRange{{Tree: 1000, Session: 0, Count: 1}, {Tree: 0, Session: 0, Count: 1000}, {Tree: 1001, Session: 1001, Count: 1<<32 - 1 - 1001}},
		},
		"several ids, as nobody": {
			[]ns.Range{{Inside: 0, Outside: 100000, Count: 65536}},
			[]uint32{1000, 0, 1000},
			65534,
			[]fuse.IDRange{
				{Tree: 1000, Session: 165534, Count: 1},
				{Tree: 0, Session: 165534, Count: 1},
				{Tree: 1, Session: 100001, Count: 999},
				{Tree: 1001, Session: 101001, Count: 64535},
			},
		},
		"of the caller's own, with one id": {
			[]ns.Range{{Inside: 0, Outside: 1000, Count: 1}},
			[]uint32{1000},
			0,
			[]fuse.IDRange{{Tree: 1000, Session: 1000, Count: 1}, {Tree: 0, Session: 1000, Count: 1}},
		},
	} {
		if got := shownTo(shown([]ns.Range{{Count: 1<<32 - 1}}, c.ranges), c.own, outside(c.ranges, c.command)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
