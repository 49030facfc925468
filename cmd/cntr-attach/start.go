package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/agent"
	"github.com/cntr-attach/cntr-attach/internal/cli"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// startSession starts the session through the service, if that can be reached.
func startSession(ctx context.Context, r *cli.Request) (*dbus.Attached, error) {
	if r.Direct {
		return nil, withoutService()
	}
	client, err := dbus.Connect(ctx)
	if fail.Is(err, fail.NotSupported) && unix.Geteuid() == 0 {
		r.Tell("%v; going on without the service", err)
		return nil, withoutService()
	}
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if r.Ask {
		asks, err := agent.Start(ctx)
		if err != nil {
			return nil, err
		}
		defer asks.Stop()
		client.Interactive = asks != nil
	}
	return client.Attach(ctx, r.Machine, r.AttachOptions)
}

// withoutService becomes the program that starts sessions itself. It is a program of its own because it is made of
// much that this one does without, and starts the quicker for it.
func withoutService() error {
	program, err := cli.Program("cntr-direct")
	if err != nil {
		return err
	}
	return &os.PathError{Op: "execute", Path: program, Err: unix.Exec(program, os.Args, os.Environ())}
}
