package engine

import (
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestServiceName(t *testing.T) {
	for _, c := range []struct {
		name, want string
		code       fail.Code
	}{
		{"nginx", "nginx.service", ""},
		{"nginx.service", "nginx.service", ""},
		{"a.b", "a.b.service", ""},
		{"getty@tty1", "getty@tty1.service", ""},
		{"socket", "socket.service", ""},
		{"nginx.socket", "", fail.NotAContainer},
		{"session-1.scope", "", fail.NotAContainer},
	} {
		got, err := serviceName(c.name)
		if got != c.want || c.code == "" && err != nil || c.code != "" && !fail.Is(err, c.code) {
			t.Errorf("serviceName(%q) = %q, %v", c.name, got, err)
		}
	}
}

func TestInCgroup(t *testing.T) {
	for _, c := range []struct {
		cgroups, group string
		want           bool
	}{
		{"0::/system.slice/web.service\n", "/system.slice/web.service", true},
		{"0::/system.slice/web.service/sub\n", "/system.slice/web.service", true},
		{"0::/system.slice/web.service2\n", "/system.slice/web.service", false},
		{"9:name=systemd:/system.slice/web.service\n0::/\n", "/system.slice/web.service", true},
		{"4:cpu:/system.slice/web.service\n0::/\n", "/system.slice/web.service", false},
		{"0::/\n", "/system.slice/web.service", false},
		{"", "/system.slice/web.service", false},
	} {
		if got := inCgroup(c.cgroups, c.group); got != c.want {
			t.Errorf("inCgroup(%q, %q) = %v", c.cgroups, c.group, got)
		}
	}
}

func TestUsable(t *testing.T) {
	running := service{Id: "web.service", LoadState: "loaded", ActiveState: "active", MainPID: 7, ControlGroup: "/x"}
	for _, c := range []struct {
		change func(*service)
		want   fail.Code
	}{
		{func(*service) {}, ""},
		{func(p *service) { p.ActiveState = "reloading" }, ""},
		{func(p *service) { p.LoadState = "not-found" }, fail.NoSuchMachine},
		{func(p *service) { p.ActiveState = "inactive" }, fail.NotRunning},
		{func(p *service) { p.ActiveState = "failed" }, fail.NotRunning},
		{func(p *service) { p.MainPID = 0 }, fail.NotAContainer},
		{func(p *service) { p.MainPID, p.ActiveState = 0, "activating" }, fail.NotRunning},
		{func(p *service) { p.MainPID, p.ActiveState = 0, "deactivating" }, fail.NotRunning},
	} {
		p := running
		c.change(&p)
		if err := p.usable(); c.want == "" && err != nil || c.want != "" && !fail.Is(err, c.want) {
			t.Errorf("%+v: %v, want %q", p, err, c.want)
		}
	}
}
