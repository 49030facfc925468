package engine

import (
	"slices"
	"strings"
	"testing"
)

var (
	id     = strings.Repeat("3f2a", 16)
	podUID = "0c5e1111-2222-3333-4444-555566667777"
)

func TestParseConmon(t *testing.T) {
	base := "/usr/bin/conmon --api-version 1 -c " + id + " -u " + id + " -r /usr/bin/crun -p /run/pidfile -n web --exit-dir /run -s"
	for _, c := range []struct {
		args string
		ok   bool
	}{
		{base + " --exit-command /usr/bin/podman --exit-command-arg -n", true},
		{base, false}, // CRI-O's
		{strings.Replace(base, "-u "+id, "-u "+strings.Repeat("0", 64), 1) + " --exit-command x", false}, // podman exec
		{strings.Replace(base, "-n web", "-n ../web", 1) + " --exit-command x", false},
		{strings.Replace(base, "-n web", "-n", 1) + " --exit-command x", false},
		{strings.ReplaceAll(base, id, "3f2a") + " --exit-command x", false},
		{"conmon", false},
		{"", false},
	} {
		got, ok := parseConmon(strings.Split(c.args, " "))
		if ok != c.ok || ok && (got.id != id || got.name != "web") {
			t.Errorf("%q: %+v, %v", c.args, got, ok)
		}
	}
}

func FuzzParseConmon(f *testing.F) {
	f.Add("conmon -c " + id + " -u " + id + " -n web --exit-command x")
	f.Fuzz(func(t *testing.T, args string) {
		c, ok := parseConmon(strings.Split(args, " "))
		if ok && (len(c.id) != 64 || c.name == "" || strings.ContainsAny(c.name, "/@\n")) {
			t.Errorf("%q: %+v", args, c)
		}
	})
}

func TestParseScopes(t *testing.T) {
	slice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(podUID, "-", "_") + ".slice/"
	for _, c := range []struct {
		kind, group, pod string
		ok               bool
	}{
		{"containerd", "/system.slice/nerdctl-" + id + ".scope", "", true},
		{"containerd", slice + "cri-containerd-" + id + ".scope", podUID, true},
		{"k8s", slice + "cri-containerd-" + id + ".scope", podUID, true},
		{"crio", slice + "crio-" + id + ".scope", podUID, true},
		{"crio", slice + "crio-conmon-" + id + ".scope", "", false},
		{"k8s", slice + "crio-conmon-" + id + ".scope", "", false},
		{"k8s", slice + "crio-" + id + ".scope", podUID, true},
		{"k8s", "/kubepods/burstable/pod" + podUID + "/" + id, podUID, true},
		{"k8s", "/kubepods/pod" + podUID + "/" + id, podUID, true},
		{"k8s", "/system.slice/docker-" + id + ".scope", "", false},
		{"docker", "/system.slice/docker-" + id + ".scope", "", true},
		{"docker", "/system.slice/docker-3f2a.scope", "", false},
		{"docker", "/system.slice/docker-" + id + "0.scope", "", false},
	} {
		got, ok := (&Scopes{kind: c.kind}).parse(c.group)
		if ok != c.ok || ok && (got.id != id || got.pod != c.pod || got.group != c.group) {
			t.Errorf("%s in %s: %+v, %v", c.group, c.kind, got, ok)
		}
	}
}

func TestOwner(t *testing.T) {
	for _, c := range []struct {
		owner      owner
		name, bare string
		owns       bool
	}{
		{owner{}, "web", "web", true},
		{owner{}, "web@alice", "web", false},
		{owner{}, "web@", "web", false},
		{owner{1000, "alice"}, "web", "web", false},
		{owner{1000, "alice"}, "web@alice", "web", true},
		{owner{1000, "alice"}, "web@bob", "web", false},
		{owner{1000, "1000"}, "web@1000", "web", true},
	} {
		if bare, owns := c.owner.owns(c.name); owns != c.owns || owns && bare != c.bare {
			t.Errorf("%+v owns %q: %q, %v", c.owner, c.name, bare, owns)
		}
	}
}

func TestForksOfAConmonAreNone(t *testing.T) {
	alice := owner{1000, "alice"}
	web := conmon{pid: 10, parent: 1, owner: alice, id: id, name: "web"}
	fork, others := web, web
	fork.pid, fork.parent = 11, 10
	others.pid, others.parent, others.owner = 12, 10, owner{}
	second := conmon{pid: 13, parent: 10, owner: alice, id: strings.Repeat("ab12", 16), name: "web"}
	if got := withoutForks([]conmon{fork, web, others, second}); !slices.Equal(got, []conmon{web, others, second}) {
		t.Errorf("got %+v", got)
	}
}
