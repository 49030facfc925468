package server

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/session"
)

// busProcess returns the process of the test's bus.
func busProcess(t *testing.T) int {
	t.Helper()
	var pid uint32
	err := connectStranger(t).call(context.Background(), "GetConnectionUnixProcessID", []any{"org.freedesktop.DBus"}, &pid)
	if err != nil {
		t.Fatal(err)
	}
	return int(pid)
}

// The service says that it works only while it has answers of its own by way of the bus.
func TestWatchdogTellsOnlyOfAnswers(t *testing.T) {
	startBus(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	logRead, logWrite := io.Pipe()
	states, ended := make(chan string, 1000), make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Config{
			Machines: machines{}, Sessions: &sessions{}, Watchdog: 50 * time.Millisecond,
			Log:    slog.New(slog.NewTextHandler(logWrite, nil)),
			Notify: func(state string) { states <- state },
		})
		_ = logWrite.Close()
	}()
	complaints := make(chan string, 1000)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := logRead.Read(buf)
			if err != nil {
				return
			}
			complaints <- string(buf[:n])
		}
	}()
	next := func(what string, from chan string, want string) {
		t.Helper()
		for deadline := time.After(patience); ; {
			select {
			case got := <-from:
				if strings.Contains(got, want) {
					return
				}
			case <-deadline:
				t.Fatalf("no %s", what)
			}
		}
	}
	for range 2 {
		next("sign of life", states, "WATCHDOG=1")
	}
	bus := busProcess(t)
	if err := unix.Kill(bus, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const silent = "does not answer itself"
	next("complaint", complaints, silent) // about what was under way
	for len(states) > 0 {
		<-states
	}
	for range 3 {
		next("complaint", complaints, silent)
	}
	if len(states) > 0 {
		t.Errorf("with no bus that answers it says %q", <-states)
	}
	if err := unix.Kill(bus, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	next("sign of life", states, "WATCHDOG=1")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The calls of the watchdog do not count as work.
func TestWatchdogDoesNotKeepTheService(t *testing.T) {
	startBus(t)
	states := make(chan string, 10000)
	err := Serve(context.Background(), Config{
		Machines: machines{}, Sessions: &sessions{}, Watchdog: time.Millisecond, IdleTimeout: 200 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler), Notify: func(state string) { states <- state },
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	startBus(t)
	s := &sessions{}
	reload, states, ended := make(chan os.Signal, 1), make(chan string, 1000), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		ended <- Serve(ctx, Config{
			Machines: machines{}, Sessions: s, Reload: reload,
			Log: slog.New(slog.DiscardHandler), Notify: func(state string) { states <- state },
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-states:
			if !strings.HasPrefix(got, want) {
				t.Errorf("systemd is told %q, not %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("systemd is not told %q", want)
		}
	}
	expect("READY=1\nSTATUS=No sessions")
	m, _, err := machines{}.Find(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	one, err := s.Start(ctx, m, session.Spec{Command: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	reload <- unix.SIGHUP
	expect("RELOADING=1\nMONOTONIC_USEC=")
	expect("STATUS=1 session")
	expect("READY=1\nSTATUS=1 session")
	if err := s.Terminate(ctx, one); err != nil {
		t.Error(err)
	}
	_ = one.Close()
	expect("STATUS=No sessions")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
