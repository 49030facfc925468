package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

const usage = `cntr-attach [OPTIONS…] MACHINE [COMMAND [ARG…]]

Run COMMAND (or a shell) in a running container, with the tools of this host.
The container's own root directory is at /var/lib/cntr.

MACHINE is a name, or KIND:NAME: nspawn, lxc, docker, podman, incus, lxd, k8s,
containerd, crio, unit (a service), pid. Those of a user are NAME@USER.

      --image=IMAGE        The tools of a directory, an image or docker:NAME
  -u, --user=USER          Be USER of the machine, by name or number [root]
  -E, --setenv=NAME[=VALUE]  Set a variable, or pass one on
      --chdir=DIR          Start in DIR [this directory, if it is there; else /]
      --writable           Allow writing to the tools, the host's own files
      --strict; --label=off  Only its own capabilities; not its security label
      --capabilities=[~]LIST  At most those in LIST, or all but those
  -t, --pty; -P, --pipe    Give COMMAND a terminal, or pipes, whatever this is
  -p, --property=NAME=VALUE  Limit the session: CPUQuota=20%, MemoryMax=1G, …
  -H, --host=[USER@]HOST   On another host, by ssh
      --direct; --no-ask-password  Without the service (root only); never ask
  -v, --verbose; -q, --quiet  Tell more, the cost at the end too; only errors
  -h, --help; --version    Show this, or the version
In a terminal, ^] three times within a second leaves. Exit status: COMMAND's;
128+N if signal N killed it; 125 if this failed; 126, 127 if COMMAND cannot run.
`

type options struct {
	machine      string
	command      []string // empty: a shell
	image        string   // empty: what is configured, or the host
	user         string
	env          []string // NAME=VALUE
	dir          string   // empty: as the caller
	writable     bool
	strict       bool
	noLabel      bool
	capabilities []string // nil: as many as there can be
	pty          bool
	pipe         bool
	direct       bool
	quiet        bool
	verbose      bool
	properties   []string
	host         string   // empty: this one
	args         []string // all but --host
	noPassword   bool
	help         bool
	version      bool
}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	var setenv []string
	var label string
	f := pflag.NewFlagSet("cntr-attach", pflag.ContinueOnError)
	f.SetInterspersed(false) // what comes after MACHINE is COMMAND's
	f.Usage = func() {}
	f.StringVar(&o.image, "image", "", "")
	f.StringVarP(&o.user, "user", "u", "", "")
	f.StringArrayVarP(&setenv, "setenv", "E", nil, "")
	f.StringVar(&o.dir, "chdir", "", "")
	f.BoolVar(&o.writable, "writable", false, "")
	f.BoolVar(&o.strict, "strict", false, "")
	f.StringVar(&label, "label", dbus.LabelMachine, "")
	capabilities := f.String("capabilities", "", "")
	f.BoolVarP(&o.pty, "pty", "t", false, "")
	f.BoolVarP(&o.pipe, "pipe", "P", false, "")
	f.BoolVar(&o.direct, "direct", false, "")
	f.BoolVar(&o.noPassword, "no-ask-password", false, "")
	f.StringArrayVarP(&o.properties, "property", "p", nil, "")
	f.StringVarP(&o.host, "host", "H", "", "")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "")
	f.BoolVarP(&o.help, "help", "h", false, "")
	f.BoolVar(&o.version, "version", false, "")

	const hint = "cntr-attach --help shows the options; they come before MACHINE"
	err := f.Parse(args)
	if err != nil {
		return nil, fail.New(fail.InvalidArgument, hint, "%w", err)
	}
	if o.help || o.version {
		return o, nil
	}
	if f.Changed("capabilities") {
		o.capabilities = splitCapabilities(*capabilities)
	}
	if f.NArg() == 0 {
		return nil, fail.New(fail.InvalidArgument, "cntrctl list shows the names; cntr-attach --help the options",
			"which machine?")
	}
	if o.pty && o.pipe {
		return nil, fail.New(fail.InvalidArgument, hint, "--pty and --pipe exclude each other")
	}
	switch label {
	case dbus.LabelMachine:
	case dbus.LabelOff:
		o.noLabel = true
	default:
		return nil, fail.New(fail.InvalidArgument, hint, "--label=%s is neither %s nor %s", label, dbus.LabelOff, dbus.LabelMachine)
	}
	if o.host != "" {
		if strings.HasPrefix(o.host, "-") {
			return nil, fail.New(fail.InvalidArgument, hint, "--host=%s is no host", o.host)
		}
		o.args = elsewhere(f, args)
	}
	if o.image, err = absolute(o.image, o.host != ""); err != nil {
		return nil, err
	}
	o.machine, o.command = f.Arg(0), f.Args()[1:]
	if len(o.command) > 0 && o.command[0] == "--" {
		o.command = o.command[1:]
	}
	if o.dir != "" && !filepath.IsAbs(o.dir) {
		return nil, fail.New(fail.InvalidArgument, "give an absolute path", "--chdir=%s is not absolute", o.dir)
	}
	for _, v := range setenv {
		name, _, set := strings.Cut(v, "=")
		if name == "" {
			return nil, fail.New(fail.InvalidArgument, "it takes NAME=VALUE, or the NAME of a variable that is set",
				"--setenv=%s has no name", v)
		}
		if !set {
			value, ok := os.LookupEnv(name)
			if !ok {
				return nil, fail.New(fail.InvalidArgument, "give it a value: --setenv="+name+"=VALUE",
					"--setenv=%s: the variable is not set here", name)
			}
			v = name + "=" + value
		}
		o.env = append(o.env, v)
	}
	return o, nil
}

// splitCapabilities takes a list with commas in it. A "~" in front is for all of the list, as systemd has it.
func splitCapabilities(list string) []string {
	list, not := strings.CutPrefix(list, "~")
	names := []string{}
	for _, name := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		if not {
			name = "~" + name
		}
		names = append(names, name)
	}
	return names
}

// absolute completes an image's path, which may be one from here: "./tools" or "dir/tools".
func absolute(name string, elsewhere bool) (string, error) {
	if strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || name == "." || name == ".." ||
		strings.Contains(name, "/") && !strings.HasPrefix(name, "/") && !strings.Contains(name, ":") {
		if elsewhere {
			return "", fail.New(fail.InvalidArgument, "give an absolute path", "--image=%s is no path on another host", name)
		}
		return filepath.Abs(name)
	}
	return name, nil
}

// inherited are the variables of the caller that a command gets: those about the person at the terminal
// and the tools, none about the host.
var inherited = []string{
	"PATH", "HOME", "SHELL", "TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE",
	"EDITOR", "VISUAL", "PAGER", "LESS", "LS_COLORS",
}

// environment returns what of the caller's environment a command gets.
func (o *options) environment() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		keep := strings.HasPrefix(name, "LC_")
		for _, i := range inherited {
			keep = keep || name == i
		}
		if name == "HOME" && o.user != "" {
			keep = false // it is somebody else's
		}
		if keep {
			env = append(env, v)
		}
	}
	return env
}

// argv returns the command, or the caller's shell.
func (o *options) argv() []string {
	if len(o.command) > 0 {
		return o.command
	}
	if shell := os.Getenv("SHELL"); filepath.IsAbs(shell) {
		return []string{shell}
	}
	return []string{"/bin/sh"}
}

// workingDirectory returns where to start. The caller's own directory is only a wish.
func (o *options) workingDirectory() string {
	if o.dir != "" {
		return o.dir
	}
	if dir, err := os.Getwd(); err == nil && filepath.IsAbs(dir) {
		return "-" + dir
	}
	return "/"
}
