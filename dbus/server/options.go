package server

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/session"
	"github.com/cntr-attach/cntr-attach/units"
)

// attachSpec is what a caller asks of Attach.
type attachSpec struct {
	session.Spec
	image      image.Ref
	chosen     bool  // the caller has named the image
	configured bool  // the configuration has
	wrong      error // the configuration, which is told who may attach
}

// parseSpec checks Attach's arguments. The descriptors in the result stay the message's.
func parseSpec(argv []string, options map[string]godbus.Variant, m *message) (attachSpec, error) {
	spec := attachSpec{Spec: session.Spec{Command: argv}}
	if len(argv) == 0 || argv[0] == "" {
		return spec, invalid("argv", "it names no command")
	}
	used := map[*os.File]bool{}
	// In order, so that the same mistake always gets the same answer.
	for _, name := range slices.Sorted(maps.Keys(options)) {
		value := options[name]
		var err error
		switch name {
		case "user":
			err = storeOption(value, &spec.User)
			if err == nil && spec.User == "" {
				err = fmt.Errorf("it is empty")
			}
		case "image":
			var text string
			err = storeOption(value, &text)
			if err == nil {
				spec.image, err = image.ParseRef(text)
				spec.chosen = text != ""
			}
		case "shell":
			err = storeOption(value, &spec.Shell)
		case "environment", "caller-environment":
			list := &spec.Env
			if name != "environment" {
				list = &spec.CallerEnv
			}
			err = storeOption(value, list)
			if err == nil {
				err = checkEnvironment(*list)
			}
		case "working-directory":
			err = storeOption(value, &spec.Dir)
			if err == nil && !path.IsAbs(strings.TrimPrefix(spec.Dir, "-")) {
				err = fmt.Errorf("%q is not an absolute path", spec.Dir)
			}
		case "writable":
			err = storeOption(value, &spec.Writable)
		case "strict":
			err = storeOption(value, &spec.Strict)
		case "capabilities":
			var names []string
			if err = storeOption(value, &names); err == nil {
				spec.Capabilities, err = session.ParseCapabilities(names)
			}
		case "label":
			var label string
			err = storeOption(value, &label)
			if err == nil && label != dbus.LabelOff && label != dbus.LabelMachine {
				err = fmt.Errorf("it is %q, neither %q nor %q", label, dbus.LabelOff, dbus.LabelMachine)
			}
			spec.NoLabel = label == dbus.LabelOff
		case "terminal":
			err = storeOption(value, &spec.Terminal)
		case "properties":
			var list []string
			if err = storeOption(value, &list); err == nil {
				spec.Properties, err = parseProperties(list)
			}
		case "rows":
			err = storeOption(value, &spec.Rows)
		case "columns":
			err = storeOption(value, &spec.Columns)
		case "stdin", "stdout", "stderr":
			names := dbus.Stdio()
			i := slices.Index(names[:], name)
			spec.Stdio[i], err = descriptor(m, value, i)
			used[spec.Stdio[i]] = true
		default:
			err = fmt.Errorf("there is no such option")
		}
		if err != nil {
			return spec, invalid("option "+name, "%w", err)
		}
	}
	for _, f := range m.files[:m.received] {
		if !used[f] {
			return spec, invalid("options", "a descriptor came along that none refers to")
		}
	}
	return spec, completeStdio(&spec.Spec, m)
}

// completeStdio checks that stdio and a terminal are not both asked for, and makes the descriptors that
// were not given /dev/null.
func completeStdio(spec *session.Spec, m *message) error {
	for i, name := range dbus.Stdio() {
		switch {
		case spec.Stdio[i] != nil && spec.Terminal:
			return invalid("option "+name, "it does not go with a terminal")
		case spec.Stdio[i] == nil && !spec.Terminal:
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			m.own(null)
			spec.Stdio[i] = null
		}
	}
	return nil
}

// storeOption stores an option's value, if it has the very type that is wanted: godbus on its own
// converts between all kinds of numbers and texts.
func storeOption[T string | bool | uint16 | []string | godbus.UnixFDIndex](value godbus.Variant, to *T) error {
	v, ok := value.Value().(T)
	if !ok {
		return fmt.Errorf("it is of type %q, not %q", value.Signature(), godbus.SignatureOf(*to))
	}
	*to = v
	return nil
}

func parseProperties(list []string) ([]units.Property, error) {
	var all []units.Property
	for _, one := range list {
		p, err := units.ParseProperty(one)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func checkEnvironment(env []string) error {
	for _, e := range env {
		name, _, found := strings.Cut(e, "=")
		if !found || name == "" {
			return fmt.Errorf("%q is not NAME=VALUE", e)
		}
	}
	return nil
}

// descriptor returns the descriptor that an option refers to, checked to be fit for its place.
func descriptor(m *message, value godbus.Variant, place int) (*os.File, error) {
	var index godbus.UnixFDIndex
	if err := storeOption(value, &index); err != nil {
		return nil, err
	}
	f := m.file(index)
	if f == nil {
		return nil, fmt.Errorf("it refers to a descriptor that did not come along")
	}
	return f, checkStdio(f, place)
}

// checkStdio accepts pipes and sockets, open for what a command does with its stdin (place 0), stdout
// or stderr. Above all it refuses terminals: a command that has its caller's terminal can type into it
// (TIOCSTI). Files and directories are refused because a machine could do more with the descriptor
// than read or write where it stands.
func checkStdio(f *os.File, place int) error {
	conn, err := f.SyscallConn() // not Fd, which would make it blocking for its owner, too
	if err != nil {
		return err
	}
	var check error
	err = conn.Control(func(fd uintptr) {
		var st unix.Stat_t
		if check = unix.Fstat(int(fd), &st); check != nil {
			return
		}
		if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
			check = fmt.Errorf("it is neither a pipe nor a socket")
			return
		}
		var flags int
		if flags, check = unix.FcntlInt(fd, unix.F_GETFL, 0); check != nil {
			return
		}
		wanted, verb := unix.O_WRONLY, "writing"
		if place == 0 {
			wanted, verb = unix.O_RDONLY, "reading"
		}
		mode := flags & unix.O_ACCMODE
		if flags&unix.O_PATH != 0 || (mode != wanted && mode != unix.O_RDWR) {
			check = fmt.Errorf("it is not open for %s", verb)
		}
	})
	if err != nil {
		return err
	}
	return check
}

// invalid is the error for an argument, or a part of one, that is not as it should be.
func invalid(what, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return fail.New(fail.InvalidArgument, fail.From(err).Hint, "invalid %s: %w", what, err)
}
