// Package cli is the command line of cntr-attach: options, the caller's terminal or pipes, the exit status. How a
// session is started is left to the program: cntr-attach asks the service, cntr-direct does without.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Request is what the command line asks for.
type Request struct {
	dbus.AttachOptions
	Machine string
	Direct  bool                             // without the service
	Ask     bool                             // the caller may be asked for a password
	Tell    func(format string, args ...any) // tells the caller something that is no error
}

// Start starts a session. What it returns is the caller's to close.
type Start func(context.Context, *Request) (*dbus.Attached, error)

// Exit statuses besides the command's own, those of docker-run(1) and chroot(1).
const (
	exitFailed    = 125
	exitCannotRun = 126
	exitNotFound  = 127
)

// Run is the program from its arguments to its exit status.
func Run(ctx context.Context, version string, args []string, start Start) int {
	o, err := parseOptions(args)
	switch {
	case err != nil:
		return report(os.Stderr, err)
	case o.help:
		fmt.Print(usage)
		return 0
	case o.version:
		fmt.Println("cntr-attach", version)
		return 0
	}
	code, err := o.attach(ctx, start)
	if err != nil {
		return report(os.Stderr, err)
	}
	return code
}

// report tells an error and what to do about it, and returns the exit status that goes with it.
func report(w io.Writer, err error) int {
	f := fail.From(err)
	fmt.Fprintf(w, "cntr-attach: %s\n", f.Message)
	if f.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", f.Hint)
	}
	var e *fail.Error
	switch errors.As(err, &e); {
	case e != nil && e.Code == fail.CommandNotFound:
		return exitNotFound
	case e != nil && e.Code == fail.CannotRun:
		return exitCannotRun
	}
	return exitFailed
}

// Program returns the path of another program of this package: beside this one, or, for those that only programs start,
// in lib/cntr-attach next to that directory. Nothing is looked up in PATH: it may be root who asks.
func Program(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", name, err)
	}
	here := filepath.Dir(self)
	for _, path := range []string{filepath.Join(here, name), filepath.Join(here, "../lib/cntr-attach", name)} {
		if _, err = os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fail.New(fail.Misconfigured, "install cntr-attach anew, with all of its programs", "%s is not there: %w", name, err)
}
