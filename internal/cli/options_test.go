package cli

import (
	"reflect"
	"strings"
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestParseOptions(t *testing.T) {
	t.Setenv("PASSED", "on")
	for _, test := range []struct {
		args string
		want options
	}{
		{"web", options{machine: "web", command: []string{}}},
		{"web gdb -p 1", options{machine: "web", command: []string{"gdb", "-p", "1"}}},
		{"web -- gdb -p 1", options{machine: "web", command: []string{"gdb", "-p", "1"}}},
		{"-v web ls", options{machine: "web", verbose: true, command: []string{"ls"}}},
		{"-q web ls --help -q", options{machine: "web", quiet: true, command: []string{"ls", "--help", "-q"}}},
		{"-- web ls", options{machine: "web", command: []string{"ls"}}},
		{"-E A=b=c -E PASSED --chdir=/x -u app -t --writable web", options{
			machine: "web", env: []string{"A=b=c", "PASSED=on"}, dir: "/x", user: "app", pty: true, writable: true,
			command: []string{},
		}},
		{"--strict --label=off web", options{machine: "web", strict: true, noLabel: true, command: []string{}}},
		{"--capabilities=~CAP_NET_RAW,CAP_KILL web", options{
			machine: "web", capabilities: []string{"~CAP_NET_RAW", "~CAP_KILL"}, command: []string{},
		}},
		{"--capabilities= web", options{machine: "web", capabilities: []string{}, command: []string{}}},
		{"--image=/srv/tools web", options{machine: "web", image: "/srv/tools", command: []string{}}},
		{"--image=docker:tools web", options{machine: "web", image: "docker:tools", command: []string{}}},
		{"--label=machine web", options{machine: "web", command: []string{}}},
		{"--help", options{help: true}},
		{"--version", options{version: true}},
	} {
		got, err := parseOptions(strings.Fields(test.args))
		if err != nil {
			t.Errorf("%q: %v", test.args, err)
		} else if !reflect.DeepEqual(*got, test.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", test.args, *got, test.want)
		}
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for _, test := range []struct{ args, message string }{
		{"", "which machine?"},
		{"--nonsense web", "unknown flag: --nonsense"},
		{"-t -P web", "exclude each other"},
		{"--label=unconfined web", "--label=unconfined is neither off nor machine"},
		{"--chdir=x web", "--chdir=x is not absolute"},
		{"--image=./tools -H far web", "is no path on another host"},
		{"-E =x web", "has no name"},
		{"-E NOT_SET_HERE web", "the variable is not set"},
	} {
		_, err := parseOptions(strings.Fields(test.args))
		if !fail.Is(err, fail.InvalidArgument) || !strings.Contains(err.Error(), test.message) {
			t.Errorf("%q: got %v, want %q", test.args, err, test.message)
		} else if fail.From(err).Hint == "" {
			t.Errorf("%q: no hint", test.args)
		}
	}
}

func TestUsageFitsAScreen(t *testing.T) {
	lines := strings.Split(usage, "\n")
	if len(lines) > 24 {
		t.Errorf("the usage has %d lines", len(lines))
	}
	for _, l := range lines {
		if len([]rune(l)) > 80 {
			t.Errorf("too wide: %q", l)
		}
	}
}

func TestEnvironmentPassesNothingOfTheHost(t *testing.T) {
	t.Setenv("HISTFILE", "/root/.history")
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("LC_ALL", "C.UTF-8")
	t.Setenv("HOME", "/root")
	o := &options{user: "app"}
	env := strings.Join(o.environment(), "\n") + "\n"
	for _, not := range []string{"HISTFILE=", "LD_PRELOAD=", "HOME="} {
		if strings.Contains(env, not) {
			t.Errorf("%s is passed on", not)
		}
	}
	for _, want := range []string{"LC_ALL=C.UTF-8\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestArgumentsForAnotherHost(t *testing.T) {
	o, err := parseOptions([]string{
		"-v", "-H", "me@far", "-E", "A=it's", "--setenv=B=2", "-pCPUQuota=20%", "--", "web", "sh", "-c", "echo -H $HOME", "--",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ssh", "-T", "--", "me@far", `exec cntr-attach '--verbose=true' '--setenv=A=it'\''s' '--setenv=B=2' ` +
		`'--property=CPUQuota=20%' '--' 'web' 'sh' '-c' 'echo -H $HOME' '--'`}
	if got := o.sshArguments(false); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := o.sshArguments(true)[1]; got != "-t" {
		t.Errorf("on a terminal it is %s", got)
	}
	if _, err := parseOptions([]string{"--host=-oProxyCommand=reboot", "web"}); err == nil {
		t.Error("an option of ssh is a host")
	}
}
