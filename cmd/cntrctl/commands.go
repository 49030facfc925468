package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/oci"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

var stderr io.Writer = os.Stderr

func list(ctx context.Context, o *options, c *dbus.Client) error {
	machines, err := c.ListMachines(ctx)
	if err != nil {
		return err
	}
	t := table{
		columns: []column{{name: "MACHINE"}, {name: "KIND"}, {name: "CLASS"}, {name: "SERVICE"}, {name: "LEADER", right: true}},
		none:    "No machines.", one: "1 machine listed.", many: "%d machines listed.",
	}
	for _, m := range machines {
		t.rows = append(t.rows, []any{m.Name, m.Kind, m.Class, m.Service, m.Leader})
	}
	return o.show(t)
}

func sessions(ctx context.Context, o *options, c *dbus.Client) error {
	running, err := c.ListSessions(ctx)
	if err != nil {
		return err
	}
	t := table{
		columns: []column{{name: "SESSION"}, {name: "MACHINE"}, {name: "USER"}, {name: "SCOPE"}, {name: "COMMAND"}},
		none:    "No sessions.", one: "1 session listed.", many: "%d sessions listed.",
	}
	for _, s := range running {
		t.rows = append(t.rows, []any{s.ID, s.Machine, s.User, s.Scope, s.Command})
	}
	return o.show(t)
}

func images(ctx context.Context, o *options, c *dbus.Client) error {
	all, err := c.ListImages(ctx)
	if err != nil {
		return err
	}
	t := table{
		columns: []column{{name: "NAME"}, {name: "TYPE"}, {name: "PATH"}},
		none:    "No images.", one: "1 image listed.", many: "%d images listed.",
	}
	for _, i := range all {
		t.rows = append(t.rows, []any{i.Name, i.Type, i.Path})
	}
	// The service knows those of the system.
	if own, err := oci.UserStore(); err == nil && own.Path != oci.SystemStore {
		list, err := own.List()
		if err != nil {
			return err
		}
		for _, i := range list {
			t.rows = append(t.rows, []any{i.Name, oci.Layout, own.Path})
		}
	}
	return o.show(t)
}

func terminate(ctx context.Context, o *options, c *dbus.Client) error {
	return o.each(func(id string) error { return c.TerminateSession(ctx, id) })
}

func kill(ctx context.Context, o *options, c *dbus.Client) error {
	return o.each(func(id string) error { return c.KillSession(ctx, id, o.signal) })
}

func showStatus(ctx context.Context, o *options, c *dbus.Client) error {
	return o.each(func(id string) error {
		s, err := c.Session(ctx, id)
		if err != nil {
			return err
		}
		if o.json != "off" {
			return writeJSON(os.Stdout, o.json, details(s))
		}
		return o.page(func(w io.Writer, colours bool) error {
			_, err := io.WriteString(w, describe(s, colours, time.Now()))
			return err
		})
	})
}

// details returns a session for JSON: what is not known is null.
func details(s *dbus.SessionDetails) map[string]any {
	known := func(n uint64) any {
		if n == status.Unknown {
			return nil
		}
		return n
	}
	return map[string]any{
		"session": s.ID, "machine": s.Machine, "class": s.Class, "service": s.Service, "leader": s.Leader, "owner": s.Owner,
		"user": s.User, "command": s.Command, "writable": s.Writable, "terminal": s.Terminal, "image": s.Image,
		"scope": s.Scope, "state": s.State, "transport": s.Transport, "timestamp": s.Started.UnixMicro(), "cpu_usage_nsec": known(s.CPUUsageNSec),
		"memory_current": known(s.MemoryCurrent), "memory_peak": known(s.MemoryPeak),
	}
}

// describe shows a session to people, as machinectl status does.
func describe(s *dbus.SessionDetails, colours bool, now time.Time) string {
	var b strings.Builder
	mark := "●"
	if colours {
		mark = "\x1b[1;32m●\x1b[0m"
	}
	fmt.Fprintf(&b, "%s %s - %s\n", mark, printable(s.ID), printable(strings.Join(s.Command, " ")))
	line := func(name, format string, args ...any) {
		for i := range args {
			if text, ok := args[i].(string); ok {
				args[i] = printable(text)
			}
		}
		fmt.Fprintf(&b, "%10s: %s\n", name, fmt.Sprintf(format, args...))
	}
	line("Since", "%s; %v ago", s.Started.Format("Mon 2006-01-02 15:04:05 MST"), now.Sub(s.Started).Round(time.Second))
	line("State", "%s", s.State)
	line("Machine", "%s (%s, %s)", s.Machine, s.Class, s.Service)
	line("Leader", "%d", s.Leader)
	line("User", "%s, for uid %d of this host", s.User, s.Owner)
	access := "read-only"
	if s.Writable {
		access = "writable"
	}
	line("Image", "%s (%s)", s.Image, access)
	line("Transport", "%s", s.Transport)
	if s.Terminal {
		line("TTY", "pts/0 of the session's own")
	} else {
		line("TTY", "none")
	}
	line("Scope", "%s", s.Scope)
	if s.CPUUsageNSec != status.Unknown {
		line("CPU", "%v", time.Duration(s.CPUUsageNSec).Round(time.Millisecond))
	}
	if s.MemoryCurrent != status.Unknown {
		peak := ""
		if s.MemoryPeak != status.Unknown {
			peak = " (peak: " + status.Bytes(s.MemoryPeak) + ")"
		}
		line("Memory", "%s%s", status.Bytes(s.MemoryCurrent), peak)
	}
	return b.String()
}

// monitor tells of sessions until it is interrupted, or the bus ends.
func monitor(ctx context.Context, o *options, c *dbus.Client) error {
	events, err := c.Watch(ctx)
	if err != nil {
		return err
	}
	for e := range events {
		row := map[string]any{"event": "new", "session": e.ID}
		text := e.ID + " new"
		if e.Removed {
			row["event"] = "removed"
			text = e.ID + " removed"
			for name, value := range e.Details {
				row[name] = value
			}
			if result, ok := e.Details["Result"].(string); ok {
				text += " " + result
			}
			if status, ok := e.Details["ExitStatus"].(int32); ok {
				text += " " + strconv.Itoa(int(status))
			}
		} else if s, err := c.Session(ctx, e.ID); err == nil {
			// Who may not look at it is told its id. So is who comes too late.
			for name, value := range details(s) {
				row[name] = value
			}
			text += " " + s.Machine + " " + s.User + " " + strings.Join(s.Command, " ")
		}
		if o.json != "off" {
			err = json.NewEncoder(os.Stdout).Encode(row) // a line for each, whatever the mode
		} else {
			_, err = fmt.Println(time.Now().Format(time.TimeOnly), printable(text))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
