package units

import (
	"context"
	"errors"
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
	BindsTo     string   // a unit that must be active, and with which the scope ends; may be empty

	// Keep keeps the unit, and with it what it has cost, after its last process went: until [Systemd.Forget],
	// or the end of this connection. It has no effect where there is no bus.
	Keep bool
}

// StartScope makes the scope and waits until its process is in it. It returns the scope's control
// group, as /proc/PID/cgroup names it: "/cntr.slice/cntr-web-1f2e3d4c.scope".
//
// The process is named by a pidfd (systemd v255); with an older systemd by its number, which the
// caller must keep from being used again: a child that has not been waited for does. Errors carry
// fail.NotRunning if the unit in BindsTo is not active or being stopped.
func (s *Systemd) StartScope(ctx context.Context, scope Scope) (cgroup string, err error) {
	err = s.startTransient(ctx, scope, !s.withoutPIDFDs.Load())
	if unknownProperty(err, "PIDFDs") {
		s.withoutPIDFDs.Store(true)
		err = s.startTransient(ctx, scope, false)
	}
	if err != nil {
		return "", explain(scope, err)
	}
	cgroup, err = s.controlGroup(ctx, scope.Name)
	if err != nil {
		return "", err
	}
	if cgroup == "" {
		// The job was done, and the scope is empty and collected already.
		return "", fmt.Errorf("%s ended as soon as it was started", scope.Name)
	}
	return cgroup, nil
}

// Forget lets go of a scope that was made with Keep. One that is gone already is no error.
func (s *Systemd) Forget(ctx context.Context, name string) error {
	if s.private {
		return nil
	}
	// go-systemd has no call for this. The reference belongs to the connection that it makes calls on.
	err := s.object().CallWithContext(ctx, managerInterface+".UnrefUnit", 0, name).Err
	switch bus.ErrorName(err) {
	case noSuchUnit, unknownObject, notReferenced:
		return nil
	}
	if err != nil {
		return fmt.Errorf("letting go of %s: %w", name, err)
	}
	return nil
}

func (s *Systemd) startTransient(ctx context.Context, scope Scope, pidfds bool) error {
	// BindsTo= is what ends the scope when its machine ends, in whatever way. But it is also a
	// requirement, and starting a unit starts what it requires: whoever attaches to a machine in the
	// moment when it stops would start it again, and Requisite=, which starts nothing, ends nothing
	// either when a machine dies. So the requirements are ignored for this one job. The order is not,
	// and the slice, which is one of them, gets a job of its own: once for each connection, as it costs
	// systemd half a millisecond, and a scope in a slice that was stopped since lacks nothing but the
	// slice's being shown as active.
	const mode = "ignore-requirements"
	if _, started := s.slices.LoadOrStore(scope.Slice, true); scope.Slice != "" && !started {
		if _, err := s.conn.StartUnitContext(ctx, scope.Slice, "fail", nil); err != nil {
			s.slices.Delete(scope.Slice)
			return err
		}
	}
	done := make(chan string, 1)
	_, err := s.conn.StartTransientUnitContext(ctx, scope.Name, mode, s.properties(scope, pidfds), done)
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
	}
	if scope.Slice != "" {
		p = append(p, dbus.PropSlice(scope.Slice))
	}
	if scope.BindsTo != "" {
		p = append(p, dbus.PropBindsTo(scope.BindsTo), dbus.PropAfter(scope.BindsTo))
	}
	if scope.Keep && !s.private {
		// The reference is counted by bus name: there is none without a bus.
		p = append(p, property("AddRef", true))
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
	switch {
	case errors.Is(err, errDependency) && scope.BindsTo != "":
		// systemd looks at it in the moment when it starts the scope, because of After=.
		return fail.New(fail.NotRunning, "see systemctl status "+scope.BindsTo,
			"the machine's unit %s is not active", scope.BindsTo)
	case bus.ErrorName(err) == propertyReadOnly:
		return fail.New(fail.NotSupported, "systemd 252 or newer is needed",
			"this systemd cannot make the scope %s: %w", scope.Name, err)
	}
	return fmt.Errorf("starting %s: %w", scope.Name, err)
}
