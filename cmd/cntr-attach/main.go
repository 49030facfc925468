// Command cntr-attach puts its user into a running container with the tools of the host; see
// cntr-attach(1).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/session"
)

// version is set by the Makefile.
var version = "0.1.0-dev"

// The program also becomes session processes, for --direct; see cmd/cntr-session for the reason.
func init() { runtime.LockOSThread() }

func main() {
	if session.IsProcess() {
		os.Exit(session.Main())
	}
	os.Exit(run(context.Background(), os.Args[1:]))
}

// Exit statuses besides the command's own, those of docker-run(1) and chroot(1).
const (
	exitFailed    = 125
	exitCannotRun = 126
	exitNotFound  = 127
)

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
		fmt.Println("cntr-attach", version)
		return 0
	}
	code, err := attach(ctx, o)
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
