// Command cntrctl lists machines and the sessions in them, and ends sessions; see cntrctl(1).
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/agent"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// version is set when the program is built.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run is the program from its arguments to its exit status.
func run(ctx context.Context, args []string) int {
	o, err := parseOptions(args)
	switch {
	case err != nil:
		return report(os.Stderr, err)
	case o.help:
		fmt.Print(usage)
		return 0
	case o.version:
		fmt.Println("cntrctl", version)
		return 0
	}
	if err := o.run(ctx); err != nil {
		return report(os.Stderr, err)
	}
	return 0
}

// run connects and runs the command.
func (o *options) run(ctx context.Context) error {
	if o.command.alone {
		return o.command.run(ctx, o, nil)
	}
	client, err := dbus.Connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if !o.noPassword {
		asks, err := agent.Start(ctx)
		if err != nil {
			return err
		}
		defer asks.Stop()
		client.Interactive = asks != nil
	}
	return o.command.run(ctx, o, client)
}

// report tells an error and what to do about it, and returns the exit status.
func report(w io.Writer, err error) int {
	f := fail.From(err)
	fmt.Fprintf(w, "cntrctl: %s\n", f.Message)
	if f.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", f.Hint)
	}
	return 1
}
