package units

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// stopTimeout is how long a scope that is stopped may take before its processes are killed.
const stopTimeout = 10 * time.Second

// Scope is a transient scope to be made.
type Scope struct {
	Name        string // "cntr-web-1f2e3d4c.scope", see [ScopeName]
	Description string
	Slice       string   // "cntr.slice"
	PIDFD       *os.File // the process to put in; stays the caller's
	PID         int      // the same process, for systemd before v255
	Properties  []Property
}

// StartScope makes the scope and waits until its process is in it.
//
// The process is named by a pidfd (systemd v255); with an older systemd by its number, which the
// caller must keep from being used again: a child that has not been waited for does.
func (s *Systemd) StartScope(ctx context.Context, scope Scope) error {
	err := s.startTransient(ctx, scope, !s.withoutPIDFDs.Load())
	if unknownProperty(err, "PIDFDs") {
		s.withoutPIDFDs.Store(true)
		err = s.startTransient(ctx, scope, false)
	}
	if err != nil {
		return explain(scope, err)
	}
	return nil
}

func (s *Systemd) startTransient(ctx context.Context, scope Scope, pidfds bool) error {
	done := make(chan string, 1)
	_, err := s.conn.StartTransientUnitContext(ctx, scope.Name, "fail", s.properties(scope, pidfds), done)
	if err != nil {
		return err
	}
	return s.result(ctx, done, "starting")
}

func (s *Systemd) properties(scope Scope, pidfds bool) []dbus.Property {
	p := []dbus.Property{
		dbus.PropDescription(printable(scope.Description)),
		property("CollectMode", "inactive-or-failed"), // leave nothing behind, failed or not
		property("TimeoutStopUSec", uint64(stopTimeout.Microseconds())),
		property("SendSIGHUP", true), // a shell does not end on SIGTERM
		// CPU time is counted always; the others where the kernel has the controllers and somebody asks for it.
		property("MemoryAccounting", true), property("IOAccounting", true), property("TasksAccounting", true),
	}
	if scope.Slice != "" {
		p = append(p, dbus.PropSlice(scope.Slice))
	}
	for _, more := range scope.Properties {
		p = append(p, more.property)
	}
	if pidfds {
		return append(p, property("PIDFDs", []godbus.UnixFD{godbus.UnixFD(scope.PIDFD.Fd())}))
	}
	return append(p, property("PIDs", []uint32{uint32(scope.PID)}))
}

// printable makes any text one line that D-Bus can carry and a terminal can show, of a length that fits
// one: commands hold any bytes, and are as long as they like.
func printable(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// unknownProperty reports whether systemd refused a transient unit because it does not know a property
// ("Cannot set property X, or unknown property."): it then has made nothing.
func unknownProperty(err error, name string) bool {
	return bus.ErrorName(err) == propertyReadOnly && strings.Contains(err.Error(), " "+name+",")
}

// explain says what a refused scope means.
func explain(scope Scope, err error) error {
	if bus.ErrorName(err) == propertyReadOnly {
		return fail.New(fail.NotSupported, "systemd 252 or newer is needed",
			"this systemd cannot make the scope %s: %w", scope.Name, err)
	}
	switch bus.ErrorName(err) {
	case "org.freedesktop.DBus.Error.InvalidArgs":
		return fail.New(fail.InvalidArgument, "see systemd.resource-control(5)", "systemd refuses the scope %s: %w", scope.Name, err)
	case unitMasked:
		return fail.New(fail.NotSupported, "systemctl unmask "+scope.Slice, "systemd refuses the scope %s: %w", scope.Name, err)
	case "org.freedesktop.DBus.Error.LimitsExceeded", unitExists:
		return fail.New(fail.LimitsExceeded, "see systemctl status", "systemd refuses the scope %s: %w", scope.Name, err)
	case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.ServiceUnknown":
		return fail.New(fail.NotSupported, "try again", "systemd does not answer to the wish for the scope %s: %w", scope.Name, err)
	}
	return fmt.Errorf("starting %s: %w", scope.Name, err)
}
