package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

const usage = `cntrctl [OPTIONS…] COMMAND

List machines that can be attached to, sessions in them, and images.

  list              Machines [what is done without COMMAND]
  sessions          Sessions that run
  status ID…        What a session is and has cost
  terminate ID…     End sessions
  kill ID…          Send a signal to the processes of sessions
  images            What can be the tools in a session
  import IMAGE [NAME]  Bring an image here: docker://NAME, oci:DIRECTORY, …
  remove NAME…      Remove images that were imported
  monitor           Tell of sessions as they start and end

  -s, --signal=SIGNAL  What kill sends [SIGTERM]
      --json=MODE      Output as JSON: short, pretty or off
      --no-legend      No headings and no totals
      --no-pager       Do not page
      --no-ask-password  Fail rather than ask for a password
  -h, --help           Show this
      --version        Show the version
`

// command is one of cntrctl's.
type command struct {
	what  string // its arguments are; it wants one at least
	most  int    // arguments
	alone bool   // it does without the service
	run   func(context.Context, *options, *dbus.Client) error
}

// many is any number of arguments.
const many = math.MaxInt

var commands = map[string]command{
	"list":      {run: list},
	"sessions":  {run: sessions},
	"status":    {what: "session", most: many, run: showStatus},
	"terminate": {what: "session", most: many, run: terminate},
	"kill":      {what: "session", most: many, run: kill},
	"images":    {run: images},
	"import":    {what: "image", most: 2, alone: true, run: importImage},
	"remove":    {what: "image", most: many, alone: true, run: removeImages},
	"monitor":   {run: monitor},
}

type options struct {
	command    command
	args       []string
	signal     int
	json       string // "short", "pretty" or "off"
	noLegend   bool
	noPager    bool
	noPassword bool
	help       bool
	version    bool
}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := pflag.NewFlagSet("cntrctl", pflag.ContinueOnError)
	f.Usage = func() {}
	signal := f.StringP("signal", "s", "SIGTERM", "")
	f.StringVar(&o.json, "json", "off", "")
	f.BoolVar(&o.noLegend, "no-legend", false, "")
	f.BoolVar(&o.noPager, "no-pager", false, "")
	f.BoolVar(&o.noPassword, "no-ask-password", false, "")
	f.BoolVarP(&o.help, "help", "h", false, "")
	f.BoolVar(&o.version, "version", false, "")

	const hint = "see cntrctl --help"
	if err := f.Parse(args); err != nil {
		return nil, fail.New(fail.InvalidArgument, hint, "%w", err)
	}
	if o.help || o.version {
		return o, nil
	}
	switch o.json {
	case "short", "pretty", "off":
	default:
		return nil, fail.New(fail.InvalidArgument, "it is short, pretty or off", "--json=%s is none of its values", o.json)
	}
	var err error
	if o.signal, err = parseSignal(*signal); err != nil {
		return nil, err
	}
	name := "list"
	if f.NArg() > 0 {
		name, o.args = f.Arg(0), f.Args()[1:]
	}
	command, known := commands[name]
	switch {
	case !known:
		return nil, fail.New(fail.InvalidArgument, hint, "there is no command %q", name)
	}
	if err := command.takes(name, o.args); err != nil {
		return nil, err
	}
	o.command = command
	return o, nil
}

// takes checks the number of a command's arguments.
func (c command) takes(name string, args []string) error {
	switch {
	case len(args) > c.most:
		return fail.New(fail.InvalidArgument, "see cntrctl --help", "%s takes no argument %q", name, args[c.most])
	case len(args) > 0 || c.most == 0:
		return nil
	case c.what == "session":
		return fail.New(fail.InvalidArgument, "cntrctl sessions shows the ids", "which session?")
	}
	return fail.New(fail.InvalidArgument, "see cntrctl --help", "which %s?", c.what)
}

// parseSignal takes "SIGHUP", "HUP" and "1".
func parseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 64 {
		return n, nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	return 0, fail.New(fail.InvalidArgument, "kill -l lists them", "there is no signal %q", s)
}

// each runs f for all arguments, and goes on where it fails. All but the last error are told here.
func (o *options) each(f func(id string) error) error {
	var last error
	for _, id := range o.args {
		if err := f(id); err != nil {
			if last != nil {
				fmt.Fprintf(stderr, "cntrctl: %v\n", last)
			}
			last = err
		}
	}
	return last
}
