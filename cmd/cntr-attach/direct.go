package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/config"
	"github.com/cntr-attach/cntr-attach/internal/engine"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
	"github.com/cntr-attach/cntr-attach/lxc/monitor"
	"github.com/cntr-attach/cntr-attach/nspawn"
	"github.com/cntr-attach/cntr-attach/units"
)

// startDirectly starts a session without the service. The session process is this program again.
func startDirectly(ctx context.Context, o *options, want session.Spec) (*attached, error) {
	if unix.Geteuid() != 0 {
		return nil, fail.New(fail.AccessDenied, "use sudo, or ask the service (leave out --direct)",
			"--direct is for root only")
	}
	machined := &nspawn.Resolver{}
	defer machined.Close()
	services := &engine.Service{}
	defer services.Close()
	// Without liblxc, which must not be linked to what runs in a machine.
	resolvers := append(machine.Registry{engine.Process{}, services, machined, monitor.Resolver{}}, engine.Engines()...)
	m, failed, err := resolvers.Find(ctx, o.machine)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	tools, err := image.ParseRef(o.image)
	if err == nil && o.image == "" {
		tools, err = config.DefaultImage(m, func(s string) { o.tell("unknown setting: %s", s) })
	}
	if err != nil {
		return nil, err
	}
	if tools.Machine != "" {
		from, err := resolvers.Resolve(ctx, tools.Machine)
		if err != nil {
			return nil, err
		}
		want.Image = image.OfMachine(from)
	} else if want.Image, err = (image.Finder{Store: machined}).Find(ctx, tools); err != nil {
		return nil, err
	}
	defer want.Image.Close()

	// A system without systemd has no scopes, and needs none.
	systemd, err := units.Connect(ctx)
	if err == nil {
		defer systemd.Close()
	}
	launcher, err := session.NewLauncher("/proc/self/exe", systemd)
	if err != nil {
		return nil, err
	}
	defer launcher.Close()

	status, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	want.Status = end
	s, err := launcher.Start(ctx, m, want)
	_ = end.Close()
	if err != nil {
		_ = status.Close()
		return nil, err
	}
	a := &attached{terminal: s.Terminal, status: status}
	for _, f := range failed {
		a.notes = append(a.notes, f.Error())
	}
	return a, nil
}
