package server

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/bus"
)

// watchdog tells the service manager that the service works, for as long as it does (sd_watchdog_enabled(3)): it calls
// itself by way of the bus, as any client would, and says so only if there was an answer. A service whose connection,
// reader or answers hang is killed then, and started anew. Sessions go on.
func (s *server) watchdog(ctx context.Context) {
	ticker := time.NewTicker(s.Watchdog)
	defer ticker.Stop()
	for {
		if err := s.callItself(ctx); err == nil {
			s.Notify("WATCHDOG=1")
		} else if ctx.Err() == nil {
			s.Log.Warn("The service does not answer itself", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// callItself returns nil if the service has answered a call of its own. An error is an answer, too: one that there are
// too many calls, say.
func (s *server) callItself(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.Watchdog)
	defer cancel()
	answered := make(chan error, 1)
	// Not waited for beyond the time: writing blocks while the bus does not read.
	go func() {
		answered <- s.conn.callOf(ctx, bus.MethodCall(s.uniqueName(), dbus.ManagerPath, peerInterface, "Ping", nil))
	}()
	select {
	case err := <-answered:
		if bus.ErrorName(err) != "" {
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isOwn reports whether a call is the watchdog's: it is no work that keeps the service.
func (s *server) isOwn(m *message) bool { return sender(m) == s.uniqueName() }

func (s *server) uniqueName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unique
}

// reload reads again what there is to know: there is no configuration, but sessions that were started without the
// service are taken up.
func (s *server) reload() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail for this clock
	s.Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=Reloading…", now.Nano()/1000))
	ctx, cancel := context.WithTimeout(s.life, callTimeout)
	defer cancel()
	if err := s.refresh(ctx); err != nil {
		s.Log.Warn("Cannot look for sessions", "error", err)
	}
	s.Notify("READY=1\nSTATUS=" + s.status())
}
