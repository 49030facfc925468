package cli

import (
	"errors"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// elsewhere returns the arguments for cntr-attach on another host: the options that were given, but for --host, and what
// comes after them.
func elsewhere(f *pflag.FlagSet, args []string) []string {
	var out []string
	given := args[:len(args)-f.NArg()]
	if len(given) > 0 && given[len(given)-1] == "--" {
		given = given[:len(given)-1]
	}
	// Parsed a second time, one by one, for the order and the values of repeated ones.
	again := pflag.NewFlagSet("", pflag.ContinueOnError)
	again.AddFlagSet(f)
	_ = again.ParseAll(given, func(flag *pflag.Flag, value string) error {
		if flag.Name != "host" {
			out = append(out, "--"+flag.Name+"="+value)
		}
		return nil
	})
	return append(append(out, "--"), f.Args()...)
}

// overSSH becomes ssh(1), which runs cntr-attach on the other host and gives its exit status.
func (o *options) overSSH() error {
	ssh, err := exec.LookPath("ssh")
	if errors.Is(err, exec.ErrNotFound) {
		return fail.New(fail.NotSupported, "install OpenSSH's client", "--host needs ssh")
	}
	if err != nil {
		return err
	}
	return unix.Exec(ssh, o.sshArguments(isTerminal(os.Stdin) && isTerminal(os.Stdout)), os.Environ())
}

// sshArguments returns the command line of ssh. The remote side gives all of it to a shell.
func (o *options) sshArguments(terminal bool) []string {
	mode := "-T"
	if !o.pipe && (terminal || o.pty) {
		mode = "-t"
	}
	remote := "exec cntr-attach"
	for _, arg := range o.args {
		remote += " " + quote(arg)
	}
	return []string{"ssh", mode, "--", o.host, remote}
}

// quote makes an argument one word of a shell, as it is.
func quote(arg string) string { return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'" }
