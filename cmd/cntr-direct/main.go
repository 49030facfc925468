// Command cntr-direct is cntr-attach --direct, which becomes it: it starts the session itself, where there is no bus or
// no service. Only root can.
package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/cli"
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

// version is set by the Makefile.
var version = "0.1.0-dev"

func main() {
	os.Exit(cli.Run(context.Background(), version, os.Args[1:], startSession))
}

// startSession starts a session without the service.
func startSession(ctx context.Context, r *cli.Request) (*dbus.Attached, error) {
	if unix.Geteuid() != 0 {
		return nil, fail.New(fail.AccessDenied, "use sudo, or ask the service (leave out --direct)",
			"--direct is for root only")
	}
	want, err := spec(r)
	if err != nil {
		return nil, err
	}
	// A system without systemd has no scopes, and needs none.
	systemd, err := units.Connect(ctx)
	if err == nil {
		defer systemd.Close()
	}
	program, err := cli.Program("cntr-session")
	if err != nil {
		return nil, err
	}
	launcher, err := session.NewLauncher(program, systemd)
	if err != nil {
		return nil, err
	}
	defer launcher.Close()
	machined := &nspawn.Resolver{}
	defer machined.Close()
	services := &engine.Service{}
	defer services.Close()
	// As far as it can be done without liblxc, which is not where everything else is broken.
	machines := append(machine.Registry{engine.Process{}, services, machined, monitor.Resolver{}}, engine.Engines()...)
	m, failed, err := machines.Find(ctx, r.Machine)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if want.Image, err = tools(ctx, r, m, machines, machined); err != nil {
		return nil, err
	}
	defer want.Image.Close()

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
	a := &dbus.Attached{ID: s.ID, Terminal: s.Terminal, Status: status}
	for _, f := range failed {
		a.Notes = append(a.Notes, f.Error())
	}
	return a, nil
}

// spec is what a session is asked to be, but for its image.
func spec(r *cli.Request) (session.Spec, error) {
	s := session.Spec{
		Command: r.Command, Shell: r.Shell, Env: r.Environment, CallerEnv: r.CallerEnv, Dir: r.WorkingDirectory, User: r.User,
		Writable: r.Writable, Strict: r.Strict, NoLabel: r.NoLabel, Terminal: r.Terminal, Rows: r.Rows, Columns: r.Columns,
		Stdio: [3]*os.File{r.Stdin, r.Stdout, r.Stderr},
	}
	for _, assignment := range r.Properties {
		property, err := units.ParseProperty(assignment)
		if err != nil {
			return s, err
		}
		s.Properties = append(s.Properties, property)
	}
	if r.Capabilities == nil {
		return s, nil
	}
	var err error
	s.Capabilities, err = session.ParseCapabilities(r.Capabilities)
	return s, err
}

// tools finds the image. The caller closes it.
func tools(ctx context.Context, r *cli.Request, m *machine.Machine, machines machine.Registry, store image.Store) (*image.Image, error) {
	ref, err := image.ParseRef(r.Image)
	if err == nil && r.Image == "" {
		ref, err = config.DefaultImage(m, func(s string) { r.Tell("unknown setting: %s", s) })
	}
	if err != nil {
		return nil, err
	}
	if ref.Machine != "" {
		from, err := machines.Resolve(ctx, ref.Machine)
		if err != nil {
			return nil, err
		}
		return image.OfMachine(from), nil
	}
	return (image.Finder{Store: store}).Find(ctx, ref)
}
