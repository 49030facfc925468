package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/agent"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/session"
	"github.com/cntr-attach/cntr-attach/units"
)

// attached is a session of this command's.
type attached struct {
	terminal *os.File // nil if it has pipes
	status   *os.File
	notes    []string // what went wrong on the way
}

// attach runs the session and returns the exit status.
func attach(ctx context.Context, o *options) (int, error) {
	if o.host != "" {
		return 0, o.overSSH()
	}
	if err := o.findImage(ctx); err != nil {
		return 0, err
	}
	interactive := o.pty || (!o.pipe && isTerminal(os.Stdin) && isTerminal(os.Stdout))
	want := session.Spec{
		Command: o.argv(), Shell: len(o.command) == 0, Env: o.env, CallerEnv: o.environment(), Dir: o.workingDirectory(), User: o.user,
		Writable: o.writable, Strict: o.strict, NoLabel: o.noLabel, Terminal: interactive,
	}
	if o.capabilities != nil {
		var err error
		if want.Capabilities, err = session.ParseCapabilities(o.capabilities); err != nil {
			return 0, err
		}
	}
	for _, assignment := range o.properties {
		property, err := units.ParseProperty(assignment)
		if err != nil {
			return 0, err
		}
		want.Properties = append(want.Properties, property)
	}
	var streams *pipes
	if interactive {
		want.Rows, want.Columns = size(os.Stdout)
	} else {
		var err error
		if streams, err = newPipes(); err != nil {
			return 0, err
		}
		want.Stdio = streams.theirs
	}
	s, err := begin(ctx, o, want)
	if err != nil {
		return 0, err
	}
	if o.verbose {
		for _, note := range s.notes {
			o.tell("%s", note)
		}
	}
	if interactive {
		if err := converse(s.terminal); err != nil {
			if errors.Is(err, errLeft) {
				o.tell("\r\nleft %s", o.machine)
				return 0, nil // our descriptors go with us, and the session with them
			}
			return 0, err
		}
		return o.finish(session.ReadStatus(s.status))
	}
	// Before anybody can see what the command says, and send a signal because of that.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	streams.copy()
	ended := make(chan session.Status, 1)
	go func() { ended <- session.ReadStatus(s.status) }()
	select {
	case end := <-ended:
		streams.drain()
		return o.finish(end)
	case interrupt := <-interrupts:
		// Without its client a session ends, in good order: the command hangs up, and what it still has
		// to say comes out. Whoever does not want to wait for that does it again.
		signal.Reset()
		_ = s.status.Close()
		streams.outputs.Wait()
		return 128 + int(interrupt.(unix.Signal)), nil
	}
}

// finish turns the end of the session into an exit status.
func (o *options) finish(end session.Status) (int, error) {
	if o.verbose {
		fmt.Fprintf(os.Stderr, "cntr-attach: %s\n", end.Summary())
	}
	if end.Error != nil {
		return 0, end.Error
	}
	if end.Terminated {
		o.tell("the session was terminated")
	}
	return end.ExitCode(), nil
}

// tell prints a message that is no error.
func (o *options) tell(format string, args ...any) {
	if !o.quiet {
		fmt.Fprintf(os.Stderr, "cntr-attach: "+format+"\n", args...)
	}
}

// begin starts the session, through the service if that can be reached.
func begin(ctx context.Context, o *options, want session.Spec) (*attached, error) {
	if ref, err := image.ParseRef(o.image); err == nil && ref.OCI != "" {
		const long = 3 * time.Second
		wait := time.AfterFunc(long, func() { o.tell("looking into the layers of %s, which is done once", o.image) })
		defer wait.Stop()
	}
	if o.direct {
		return startDirectly(ctx, o, want)
	}
	client, err := dbus.Connect(ctx)
	if fail.Is(err, fail.NotSupported) && unix.Geteuid() == 0 {
		o.tell("%v; going on without the service", err)
		return startDirectly(ctx, o, want)
	}
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var asks *agent.Agent
	if !o.noPassword {
		if asks, err = agent.Start(ctx); err != nil {
			return nil, err
		}
		defer asks.Stop()
	}
	client.Interactive = asks != nil
	s, err := client.Attach(ctx, o.machine, dbus.AttachOptions{
		Command: want.Command, Shell: want.Shell, Image: o.image, User: want.User, Environment: want.Env, CallerEnv: want.CallerEnv, WorkingDirectory: want.Dir,
		Writable: want.Writable, Strict: want.Strict, Capabilities: o.capabilities, NoLabel: want.NoLabel, Properties: o.properties,
		Terminal: want.Terminal, Rows: want.Rows, Columns: want.Columns,
		Stdin: want.Stdio[0], Stdout: want.Stdio[1], Stderr: want.Stdio[2],
	})
	if err != nil {
		return nil, err
	}
	return &attached{terminal: s.Terminal, status: s.Status, notes: s.Notes}, nil
}
