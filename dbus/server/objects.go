package server

import (
	"context"
	"os"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/dbus"
)

// Interfaces that D-Bus has for all.
const (
	peerInterface       = "org.freedesktop.DBus.Peer"
	introspectable      = "org.freedesktop.DBus.Introspectable"
	propertiesInterface = "org.freedesktop.DBus.Properties"
	objectManager       = "org.freedesktop.DBus.ObjectManager"
)

func sessionPath(id string) godbus.ObjectPath {
	return dbus.SessionsPath + "/" + godbus.ObjectPath(id)
}

// method is a method of an interface, for all objects that have it.
type method struct {
	in     string // types of its arguments
	files  int    // how many descriptors it takes at most
	action action // what the caller must be allowed; empty: it is open to all, or finds that out by itself
	call   func(*server, context.Context, caller, *message) ([]any, error)
}

// object is what an object of the service can do.
type object map[string]map[string]*method // by interface and name

// objects is all that there is.
type objects struct {
	between object // what lies between the root and an object, so that busctl tree finds its way
	manager object
	session object
}

func newObjects() objects {
	between := object{
		peerInterface: {
			"Ping":         {call: (*server).ping},
			"GetMachineId": {call: (*server).machineID},
		},
		introspectable: {
			"Introspect": {call: (*server).introspect},
		},
	}
	properties := map[string]*method{
		"Get":    {in: "ss", call: (*server).getProperty},
		"GetAll": {in: "s", call: (*server).getProperties},
		"Set":    {in: "ssv", call: (*server).setProperty},
	}
	return objects{
		between: between,
		manager: between.with(object{
			dbus.ManagerInterface: {
				"ListMachines":     {action: actionInspect, call: (*server).listMachines},
				"ResolveMachine":   {in: "s", action: actionInspect, call: (*server).resolveMachine},
				"Attach":           {in: "sasa{sv}", files: 3, call: (*server).attach},
				"ListSessions":     {action: actionInspect, call: (*server).listSessions},
				"ListImages":       {action: actionInspect, call: (*server).listImages},
				"GetSession":       {in: "s", call: (*server).getSession},
				"TerminateSession": {in: "s", call: (*server).terminateSession},
				"KillSession":      {in: "si", call: (*server).killSession},
			},
			propertiesInterface: properties,
			objectManager: {
				"GetManagedObjects": {action: actionInspect, call: (*server).managedObjects},
			},
		}),
		session: between.with(object{
			dbus.SessionInterface: {
				"Terminate": {call: (*server).terminateObject},
				"Kill":      {in: "i", call: (*server).killObject},
			},
			propertiesInterface: properties,
		}),
	}
}

func (o object) with(more object) object {
	all := object{}
	for name, methods := range o {
		all[name] = methods
	}
	for name, methods := range more {
		all[name] = methods
	}
	return all
}

// at returns what the object at a path can do, nil if there can be none. Whether there is a session at
// a session's path is for its methods to find out: who may not list sessions must not learn it by
// trying.
func (all objects) at(path godbus.ObjectPath) object {
	switch {
	case path == dbus.ManagerPath:
		return all.manager
	case path == dbus.SessionsPath, below(dbus.ManagerPath, path):
		return all.between
	case below(path, dbus.SessionsPath) && !strings.Contains(idOf(path), "/"):
		return all.session
	}
	return nil
}

// below reports whether path lies below top.
func below(path, top godbus.ObjectPath) bool {
	return top == "/" && path != "/" || strings.HasPrefix(string(path), string(top)+"/")
}

// idOf returns the session's id in the path of a session.
func idOf(path godbus.ObjectPath) string {
	return strings.TrimPrefix(string(path), string(dbus.SessionsPath)+"/")
}

// lookup finds the method that m calls. The interface may be left out of a call; a name is then enough,
// no two interfaces here share one.
func (s *server) lookup(m *message) (*method, error) {
	o := s.objects.at(pathOf(m))
	if o == nil {
		return nil, protocolError("UnknownObject", "no object at %s", pathOf(m))
	}
	name := header(m, godbus.FieldInterface)
	for iface, methods := range o {
		if f := methods[member(m)]; f != nil && (name == "" || name == iface) {
			return f, nil
		}
	}
	if _, known := o[name]; name != "" && !known {
		return nil, protocolError("UnknownInterface", "no interface %s at %s", name, pathOf(m))
	}
	return nil, protocolError("UnknownMethod", "no method %s at %s", member(m), pathOf(m))
}

func pathOf(m *message) godbus.ObjectPath {
	p, _ := m.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	return p
}

func (s *server) ping(context.Context, caller, *message) ([]any, error) { return nil, nil }

func (s *server) machineID(context.Context, caller, *message) ([]any, error) {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return nil, err
	}
	return []any{strings.TrimSpace(string(id))}, nil
}

// sessionAt finds the session whose object is called, for a caller who may see it: it is their own, or they are
// allowed what; see [server.visible].
func (s *server) sessionAt(ctx context.Context, who caller, m *message, what action) (*entry, error) {
	e := s.sessions.get(idOf(pathOf(m)))
	if err := s.visible(ctx, who, e, what); err != nil {
		return nil, err
	}
	if e == nil {
		return nil, protocolError("UnknownObject", "no object at %s", pathOf(m))
	}
	return e, nil
}

// visible says whether the caller may do something with a session of theirs, or of others, or that is not there:
// what sessions there are is not for everybody to know.
func (s *server) visible(ctx context.Context, who caller, e *entry, what action) error {
	if e != nil && who.owns(e) {
		return nil
	}
	return s.authorize(ctx, who, what, nil)
}

func (s *server) terminateObject(ctx context.Context, who caller, m *message) ([]any, error) {
	e, err := s.sessionAt(ctx, who, m, actionManage)
	if err != nil {
		return nil, err
	}
	ctx, cancel := renewed(ctx)
	defer cancel()
	return nil, s.terminate(ctx, who, e)
}

func (s *server) killObject(ctx context.Context, who caller, m *message) ([]any, error) {
	var signal int32
	if err := godbus.Store(m.Body, &signal); err != nil {
		return nil, protocolError("InvalidArgs", "%v", err)
	}
	e, err := s.sessionAt(ctx, who, m, actionManage)
	if err != nil {
		return nil, err
	}
	return nil, s.kill(who, e, signal)
}
