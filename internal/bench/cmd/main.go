// Bench measures how fast programs run in a session. See the package documentation of internal/bench.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/cntr-attach/cntr-attach/internal/bench"
	"github.com/cntr-attach/cntr-attach/internal/testhost"
)

const usage = `usage: bench [OPTIONS…]

Measure on the running test host (testhost up, testhost install), and print tables.

      --rounds=N        How often to measure [5]
      --only=REGEXP     Only the workloads with such names
      --list            Say what workloads there are
      --no-upcalls      Do not count the requests for each operation
      --memory=N        Walk N files for the memory of the server, 0 for none [300000]
      --json=FILE       Write all that was measured
      --markdown=FILE   Write the tables there as well
  -v, --verbose         Say what takes how long
`

// result is where the program leaves its report in the test host.
const result = "/var/tmp/bench-report.json"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	rounds         int
	only           string
	list           bool
	noUpcalls      bool
	memory         int
	json, markdown string
	verbose        bool
	inside         bool // in the test host
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "work" {
		return bench.Work(os.Stdin, os.Stdout)
	}
	var o options
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.IntVar(&o.rounds, "rounds", 5, "")
	flags.StringVar(&o.only, "only", "", "")
	flags.BoolVar(&o.list, "list", false, "")
	flags.BoolVar(&o.noUpcalls, "no-upcalls", false, "")
	flags.IntVar(&o.memory, "memory", 300_000, "")
	flags.StringVar(&o.json, "json", "", "")
	flags.StringVar(&o.markdown, "markdown", "", "")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "")
	flags.BoolVar(&o.inside, "inside", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected %q\nhint: bench --help", flags.Arg(0))
	case o.list:
		for _, w := range bench.Workloads() {
			fmt.Printf("%-20s %s\n", w.Name, w.Title)
		}
		return nil
	case o.inside:
		return o.measure()
	}
	return o.enter()
}

// enter runs this program in the test host, and shows its report.
func (o *options) enter() error {
	ctx := context.Background()
	host, err := testhost.Open()
	if err != nil {
		return err
	}
	if !host.Running() {
		return testhost.ErrNotRunning
	}
	if err := bench.InstallPackages(ctx, host, say); err != nil {
		return err
	}
	report := filepath.Join(host.Root(), result)
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{
		"--inside", "--rounds=" + strconv.Itoa(o.rounds), "--only=" + o.only, "--memory=" + strconv.Itoa(o.memory),
		"--no-upcalls=" + strconv.FormatBool(o.noUpcalls),
		"--verbose=" + strconv.FormatBool(o.verbose),
	}
	code, err := host.Run(ctx, self, args)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("in the test host: exit status %d", code)
	}
	data, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	return o.show(data)
}

// show prints a report, and writes it to the files that were asked for.
func (o *options) show(data []byte) error {
	var r bench.Report
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("read the report: %w", err)
	}
	r.Markdown(os.Stdout)
	if o.json != "" {
		if err := os.WriteFile(o.json, data, 0o644); err != nil {
			return err
		}
	}
	if o.markdown == "" {
		return nil
	}
	f, err := os.Create(o.markdown)
	if err != nil {
		return err
	}
	r.Markdown(f)
	return f.Close()
}

// measure is what is done in the test host.
func (o *options) measure() error {
	opts := bench.Options{Rounds: o.rounds, MemoryFiles: o.memory, Upcalls: !o.noUpcalls, Verbose: o.verbose, Log: say}
	if o.only != "" {
		var err error
		if opts.Only, err = regexp.Compile(o.only); err != nil {
			return err
		}
	}
	report, err := bench.Measure(opts)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(report, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(result, data, 0o644)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
