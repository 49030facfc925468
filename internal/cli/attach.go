package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/oci"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// attach runs the session and returns the exit status.
func (o *options) attach(ctx context.Context, start Start) (int, error) {
	if o.host != "" {
		return 0, o.overSSH()
	}
	if err := o.findImage(ctx); err != nil {
		return 0, err
	}
	r := o.request()
	var streams *pipes
	if r.Terminal {
		r.Rows, r.Columns = size(os.Stdout)
	} else {
		var err error
		if streams, err = newPipes(); err != nil {
			return 0, err
		}
		r.Stdin, r.Stdout, r.Stderr = streams.theirs[0], streams.theirs[1], streams.theirs[2]
	}
	s, err := o.begin(ctx, r, start)
	if err != nil {
		return 0, err
	}
	if o.verbose {
		for _, note := range s.Notes {
			o.tell("%s", note)
		}
	}
	if r.Terminal {
		if err := converse(s.Terminal); err != nil {
			if errors.Is(err, errLeft) {
				o.tell("\r\nleft %s", o.machine)
				return 0, nil // our descriptors go with us, and the session with them
			}
			return 0, err
		}
		return o.finish(status.Read(s.Status))
	}
	// Before anybody can see what the command says, and send a signal because of that.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	streams.copy()
	ended := make(chan status.Status, 1)
	go func() { ended <- status.Read(s.Status) }()
	select {
	case end := <-ended:
		streams.drain()
		return o.finish(end)
	case interrupt := <-interrupts:
		// Without its client a session ends, in good order: the command hangs up, and what it still has
		// to say comes out. Whoever does not want to wait for that does it again.
		signal.Reset()
		_ = s.Status.Close()
		streams.outputs.Wait()
		return 128 + int(interrupt.(unix.Signal)), nil
	}
}

// finish turns the end of the session into an exit status.
func (o *options) finish(end status.Status) (int, error) {
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

func (o *options) request() *Request {
	return &Request{
		Machine: o.machine, Direct: o.direct, Ask: !o.noPassword, Tell: o.tell,
		AttachOptions: dbus.AttachOptions{
			Command: o.argv(), Shell: len(o.command) == 0, Image: o.image, User: o.user, Environment: o.env, CallerEnv: o.environment(),
			WorkingDirectory: o.workingDirectory(), Writable: o.writable, Strict: o.strict, Capabilities: o.capabilities,
			NoLabel: o.noLabel, Properties: o.properties,
			Terminal: o.pty || (!o.pipe && isTerminal(os.Stdin) && isTerminal(os.Stdout)),
		},
	}
}

// begin starts the session.
func (o *options) begin(ctx context.Context, r *Request, start Start) (*dbus.Attached, error) {
	if kind, _, typed := strings.Cut(o.image, ":"); typed && oci.IsKind(kind) {
		const long = 3 * time.Second
		wait := time.AfterFunc(long, func() { o.tell("looking into the layers of %s, which is done once", o.image) })
		defer wait.Stop()
	}
	return start(ctx, r)
}
