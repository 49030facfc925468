package server

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// org.freedesktop.DBus.Properties. All properties are read-only.

// properties returns the properties of the object that m calls, for one interface. The standard ones
// have none.
func (s *server) properties(ctx context.Context, who caller, m *message, iface string) (map[string]godbus.Variant, error) {
	path := pathOf(m)
	if _, known := s.objects.at(path)[iface]; !known && iface != "" {
		return nil, protocolError("UnknownInterface", "no interface %s at %s", iface, path)
	}
	all := map[string]godbus.Variant{}
	if path == dbus.ManagerPath {
		if iface == dbus.ManagerInterface || iface == "" {
			all["Version"] = godbus.MakeVariant(s.Version)
		}
		return all, nil
	}
	e, err := s.sessionAt(ctx, who, m, actionInspect)
	if err != nil {
		return nil, err
	}
	if iface == dbus.SessionInterface || iface == "" {
		all = s.propertiesOf(e)
	}
	return all, nil
}

// state is the value of State.
func (e *entry) state() string {
	if e.closing.Load() {
		return "closing"
	}
	return "running"
}

// publicProperties are those that everybody may know. They tell nothing of what runs where.
func publicProperties(e *entry) map[string]godbus.Variant {
	return map[string]godbus.Variant{
		"Id":        godbus.MakeVariant(e.ID),
		"Owner":     godbus.MakeVariant(e.Owner),
		"State":     godbus.MakeVariant(e.state()),
		"Timestamp": godbus.MakeVariant(uint64(e.Started.UnixMicro())),
	}
}

func (s *server) propertiesOf(e *entry) map[string]godbus.Variant {
	usage := status.Usage{CPUNSec: status.Unknown, MemoryCurrent: status.Unknown, MemoryPeak: status.Unknown}
	transport := ""
	if e.hold() {
		usage = s.Sessions.Usage(e.Session)
		transport = s.Sessions.Transport(e.Session)
		e.release()
	}
	all := publicProperties(e)
	for name, value := range map[string]any{
		"Machine":       clean(e.Machine),
		"Class":         clean(e.Class),
		"Service":       clean(e.Service),
		"Leader":        uint32(e.Leader),
		"User":          clean(e.User),
		"Command":       cleanAll(e.Command),
		"Writable":      e.Writable,
		"Terminal":      e.TTY,
		"Image":         clean(e.Image),
		"Transport":     transport,
		"CPUUsageNSec":  usage.CPUNSec,
		"MemoryCurrent": usage.MemoryCurrent,
		"MemoryPeak":    usage.MemoryPeak,
		"Scope":         e.Scope,
	} {
		all[name] = godbus.MakeVariant(value)
	}
	return all
}

func (s *server) getProperty(ctx context.Context, who caller, m *message) ([]any, error) {
	var iface, name string
	if err := godbus.Store(m.Body, &iface, &name); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	all, err := s.properties(ctx, who, m, iface)
	if err != nil {
		return nil, err
	}
	value, known := all[name]
	if !known {
		return nil, protocolError("UnknownProperty", "no property %s at %s", name, pathOf(m))
	}
	return []any{value}, nil
}

func (s *server) getProperties(ctx context.Context, who caller, m *message) ([]any, error) {
	var iface string
	if err := godbus.Store(m.Body, &iface); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	all, err := s.properties(ctx, who, m, iface)
	if err != nil {
		return nil, err
	}
	return []any{all}, nil
}

func (s *server) setProperty(ctx context.Context, who caller, m *message) ([]any, error) {
	var iface, name string
	var value godbus.Variant
	if err := godbus.Store(m.Body, &iface, &name, &value); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	all, err := s.properties(ctx, who, m, iface)
	if err != nil {
		return nil, err
	}
	if _, known := all[name]; !known {
		return nil, protocolError("UnknownProperty", "no property %s at %s", name, pathOf(m))
	}
	return nil, protocolError("PropertyReadOnly", "property %s is read-only", name)
}
