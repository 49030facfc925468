// Command cntr-attachd is the service org.cntr.Attach1. The bus starts it when it is called, and it
// ends when it has nothing to do; see package dbus.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus/server"
	"github.com/cntr-attach/cntr-attach/internal/config"
	"github.com/cntr-attach/cntr-attach/internal/engine"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
	"github.com/cntr-attach/cntr-attach/lxc"
	"github.com/cntr-attach/cntr-attach/nspawn"
	"github.com/cntr-attach/cntr-attach/units"
)

// version is set when the program is built.
var version = "0.1.0-dev"

const usage = `Usage: cntr-attachd [OPTIONS]

Starts and lists sessions for callers on the system bus (org.cntr.Attach1).
It is started by the bus when it is called.

Options:
      --idle-timeout TIME  end after so long with nothing to do, 0 is never
                           (default 30s)
      --max-sessions N     of all users at a time (default 1024)
      --max-sessions-per-user N
                           of one user who is not root (default 64)
      --session FILE       program that a session runs
                           (default /usr/lib/cntr-attach/cntr-session)
  -h, --help               show this help
      --version            show the version
`

// program is what the command line makes of the program.
type program struct {
	idleTimeout time.Duration
	maxSessions int
	userMax     int
	session     string
}

func main() {
	os.Exit(run(os.Args[1:]))
}

// run is the program, and returns its exit status.
func run(args []string) int {
	p, err := parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "cntr-attachd: %v\nhint: see cntr-attachd --help\n", err)
		return exitUsage
	}
	log := newLog(os.Stderr)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := p.serve(ctx, log); err != nil {
		log.Error("Failed", "error", err)
		notify(log)("STATUS=Failed: " + err.Error())
		if errors.Is(err, server.ErrTaken) {
			return exitUnavailable
		}
		return 1
	}
	return 0
}

// Exit statuses for which the unit is not started again, as in sysexits.h(3head).
const (
	exitUsage       = 64
	exitUnavailable = 69
)

// parse reads the command line. It answers --help and --version itself, with pflag.ErrHelp.
func parse(args []string) (program, error) {
	p := program{}
	flags := pflag.NewFlagSet("cntr-attachd", pflag.ContinueOnError)
	flags.Usage = func() { fmt.Print(usage) }
	flags.DurationVar(&p.idleTimeout, "idle-timeout", 30*time.Second, "")
	flags.IntVar(&p.maxSessions, "max-sessions", server.DefaultMaxSessions, "")
	flags.IntVar(&p.userMax, "max-sessions-per-user", server.DefaultUserMax, "")
	flags.StringVar(&p.session, "session", "/usr/lib/cntr-attach/cntr-session", "")
	showVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return p, err
	}
	switch {
	case flags.NArg() > 0:
		return p, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case p.idleTimeout < 0:
		return p, fmt.Errorf("negative --idle-timeout %v", p.idleTimeout)
	case p.maxSessions <= 0 || p.userMax <= 0:
		return p, errors.New("a limit on sessions below 1")
	case *showVersion:
		fmt.Println("cntr-attachd", version)
		return p, pflag.ErrHelp
	}
	return p, nil
}

// serve is the service's life.
func (p program) serve(ctx context.Context, log *slog.Logger) error {
	const startTimeout = 20 * time.Second
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	systemd, err := units.Connect(starting)
	if err != nil {
		return err
	}
	defer systemd.Close()
	launcher, err := session.NewLauncher(p.session, systemd)
	if err != nil {
		return err
	}
	defer launcher.Close()
	go func() {
		if err := launcher.Shielded(); err != nil {
			log.Warn("The root of a machine may be able to take over the commands of sessions in it", "error", err)
		}
	}()
	if err := launcher.KeepResults("/run/cntr-attach"); err != nil {
		return err
	}
	launcher.KeepReady()
	machined := &nspawn.Resolver{}
	defer machined.Close()
	services := &engine.Service{}
	defer services.Close()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)
	defer signal.Stop(reload)
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("the service manager's watchdog: %w", err)
	}
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	go func() {
		select {
		case <-systemd.Lost():
			lose(errLost)
		case <-ctx.Done():
		}
	}()
	err = server.Serve(ctx, server.Config{
		Images: image.Finder{Store: machined},
		Default: func(m *machine.Machine) (image.Ref, error) {
			return config.DefaultImage(m, func(s string) { log.Warn("Unknown setting in the configuration", "setting", s) })
		},
		Machines:    append(machine.Registry{machined, lxc.NewResolver(), services, engine.Process{}}, engine.Engines()...),
		Sessions:    launcher,
		Version:     version,
		MaxSessions: p.maxSessions,
		UserMax:     p.userMax,
		IdleTimeout: p.idleTimeout,
		Watchdog:    watchdog / 2,
		Reload:      reload,
		Log:         log,
		Notify:      notify(log),
	})
	if err == nil && errors.Is(context.Cause(ctx), errLost) {
		return errLost
	}
	return err
}

// errLost ends the service: a new one connects anew, and finds the sessions.
var errLost = errors.New("the connection to systemd has ended")

// notify returns a function that tells systemd about the service. Without systemd nobody is told.
func notify(log *slog.Logger) func(string) {
	return func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("Cannot notify the service manager", "error", err)
		}
	}
}
