// Package units talks to the system's service manager, and holds the project's own unit files.
//
// Every session runs in a transient scope of its own, a unit that systemd makes for processes which
// somebody else has started. That gives an administrator what they expect of anything that runs for a
// while: systemctl status shows it, systemctl stop ends it, and what it cost is counted, the session's
// file server included. The scope belongs to systemd, not to who asked for it: it goes on when the
// daemon exits, and disappears with its last process.
package units

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// privateSocket is where systemd itself listens, for root only, bus or no bus.
const privateSocket = "/run/systemd/private"

// Systemd is a connection to the system's service manager. It may be used by several goroutines at
// once.
type Systemd struct {
	conn *dbus.Conn
	lost context.Context // ends when one of its connections does
	// withoutPIDFDs is set once a manager has refused the property PIDFDs: it is older than v255.
	withoutPIDFDs atomic.Bool
}

// Connect connects to systemd over the system bus or, where there is none and the caller is root, over
// systemd's own socket. The context bounds the connecting only. No systemd at all is fail.NotSupported.
func Connect(ctx context.Context) (*Systemd, error) {
	s, err := connect(func() (*godbus.Conn, error) { return bus.Connect(ctx) })
	if err == nil {
		return s, nil
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	s, second := connect(func() (*godbus.Conn, error) { return bus.ConnectPeer(ctx, privateSocket) })
	if second != nil {
		return nil, fail.New(fail.NotSupported, "", "cannot reach systemd: %w", errors.Join(err, second))
	}
	return s, nil
}

func connect(dial func() (*godbus.Conn, error)) (*Systemd, error) {
	lost, lose := context.WithCancel(context.Background())
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) { // called twice
		c, err := dial()
		if err == nil {
			context.AfterFunc(c.Context(), lose)
		}
		return c, err
	})
	if err != nil {
		lose()
	}
	return &Systemd{conn: conn, lost: lost}, err
}

// Lost returns a channel that is closed when the connection has ended. It is not made again.
func (s *Systemd) Lost() <-chan struct{} { return s.lost.Done() }

// Close ends the connection.
func (s *Systemd) Close() error {
	s.conn.Close()
	return nil
}

// Connected reports whether the connection still stands.
func (s *Systemd) Connected() bool { return s.conn.Connected() }

// StopUnit stops a unit and waits until it has stopped. A unit that is not there is no error.
func (s *Systemd) StopUnit(ctx context.Context, name string) error {
	// The channel has room for the result, so that go-systemd never waits for a reader that has left.
	done := make(chan string, 1)
	_, err := s.conn.StopUnitContext(ctx, name, "replace", done)
	if bus.ErrorName(err) == noSuchUnit {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stopping %s: %w", name, err)
	}
	return s.result(ctx, done, "stopping "+name)
}

// ControlGroup returns the control group of a scope, service or slice, a path below the root of the control group tree;
// "" if the unit is not there. systemd answers for a unit it does not know as for one that is inactive.
func (s *Systemd) ControlGroup(ctx context.Context, name string) (string, error) {
	p, err := s.conn.GetUnitTypePropertyContext(ctx, name, typeOf(name), "ControlGroup")
	switch bus.ErrorName(err) {
	case noSuchUnit, unknownObject:
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("control group of %s: %w", name, err)
	}
	cgroup, _ := p.Value.Value().(string)
	return cgroup, nil
}

// typeOf returns what the interface of a unit is called: "Scope" for "a.scope".
func typeOf(name string) string {
	suffix := name[strings.LastIndexByte(name, '.')+1:]
	if suffix == "" {
		return "Unit"
	}
	return strings.ToUpper(suffix[:1]) + suffix[1:]
}

// result waits for the result of a job (org.freedesktop.systemd1(5), "JobRemoved").
func (s *Systemd) result(ctx context.Context, done <-chan string, what string) error {
	select {
	case r := <-done:
		if r == "done" {
			return nil
		}
		return fmt.Errorf("%s: systemd's job ended with %q", what, r)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// Names of systemd's errors (org.freedesktop.systemd1(5), systemd's bus-common-errors.h).
const (
	noSuchUnit       = "org.freedesktop.systemd1.NoSuchUnit"
	unitExists       = "org.freedesktop.systemd1.UnitExists"
	unitMasked       = "org.freedesktop.systemd1.UnitMasked"
	unknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	propertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
)
