package dbus

import (
	"context"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// Image is a row of [Client.ListImages]: what can be a tools tree.
type Image struct{ Name, Type, Path string }

// SessionDetails is all that is told of a session.
type SessionDetails struct {
	ID, Machine, Class, Service string
	Leader                      uint32
	Owner                       uint32 // uid of who started it
	User                        string // in the machine
	Command                     []string
	Writable, Terminal          bool
	Image, Scope, State         string
	Transport                   string // of its file server: "/dev/fuse", "io_uring"
	Started                     time.Time
	CPUUsageNSec                uint64 // [status.Unknown] for what the host does not count
	MemoryCurrent, MemoryPeak   uint64 // bytes, likewise
}

// Event is the start or the end of a session.
type Event struct {
	ID      string
	Removed bool           // it has ended
	Details map[string]any // of an end, see SessionRemoved in org.cntr.Attach1(5)
}

// ListImages returns what can be a tools tree.
func (c *Client) ListImages(ctx context.Context) ([]Image, error) {
	var list []Image
	err := c.call(ctx, "ListImages").Store(&list)
	return list, decodeError(err)
}

// Session returns what is told of a session. Errors carry fail.NoSuchSession.
func (c *Client) Session(ctx context.Context, id string) (*SessionDetails, error) {
	if err := checkText("session id", id); err != nil {
		return nil, err
	}
	var path godbus.ObjectPath
	if err := c.call(ctx, "GetSession", id).Store(&path); err != nil {
		return nil, decodeError(err)
	}
	var all map[string]godbus.Variant
	err := c.callAt(ctx, path, "org.freedesktop.DBus.Properties", "GetAll", SessionInterface).Store(&all)
	if err != nil {
		return nil, decodeError(err)
	}
	d := &SessionDetails{CPUUsageNSec: status.Unknown, MemoryCurrent: status.Unknown, MemoryPeak: status.Unknown}
	var started uint64
	for name, to := range map[string]any{
		"Id": &d.ID, "Machine": &d.Machine, "Class": &d.Class, "Service": &d.Service, "Leader": &d.Leader, "Owner": &d.Owner,
		"User": &d.User, "Command": &d.Command, "Writable": &d.Writable, "Terminal": &d.Terminal, "Image": &d.Image,
		"Scope": &d.Scope, "State": &d.State, "Timestamp": &started, "Transport": &d.Transport, "CPUUsageNSec": &d.CPUUsageNSec,
		"MemoryCurrent": &d.MemoryCurrent, "MemoryPeak": &d.MemoryPeak,
	} {
		value, there := all[name]
		if !there {
			continue // of a service of another version
		}
		if err := value.Store(to); err != nil {
			return nil, fail.New(fail.Internal, "", "property %s of session %q: %w", name, id, err)
		}
	}
	d.Started = time.UnixMicro(int64(started))
	return d, nil
}

// Watch tells of all sessions that start or end from now on, until the context ends or the connection does; then the
// channel is closed. Signals are for everybody, and need no right; they neither start the service nor keep it.
func (c *Client) Watch(ctx context.Context) (<-chan Event, error) {
	signals := make(chan *godbus.Signal, 64)
	c.conn.Signal(signals)
	err := c.conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(Name), godbus.WithMatchInterface(ManagerInterface))
	if err != nil {
		c.conn.RemoveSignal(signals)
		return nil, decodeError(err)
	}
	events := make(chan Event)
	go func() {
		defer close(events)
		defer c.conn.RemoveSignal(signals)
		for {
			select {
			case s, more := <-signals:
				if !more {
					return
				}
				e, ok := eventOf(s)
				if !ok {
					continue
				}
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}

func eventOf(s *godbus.Signal) (Event, bool) {
	var e Event
	switch s.Name {
	case ManagerInterface + ".SessionNew":
	case ManagerInterface + ".SessionRemoved":
		e.Removed = true
	default:
		return e, false
	}
	if len(s.Body) < 2 {
		return e, false
	}
	id, ok := s.Body[0].(string)
	e.ID = id
	if e.Removed && len(s.Body) > 2 {
		details, _ := s.Body[2].(map[string]godbus.Variant)
		e.Details = map[string]any{}
		for name, value := range details {
			e.Details[name] = value.Value()
		}
	}
	return e, ok
}
