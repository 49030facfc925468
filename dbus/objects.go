package dbus

import (
	"context"
	"os"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// The service's names.
const (
	Name = "org.cntr.Attach1" // of the service, and the root of its interfaces and errors

	managerPath      = godbus.ObjectPath("/org/cntr/Attach1")
	sessionsPath     = managerPath + "/session"
	managerInterface = Name + ".Manager"
	sessionInterface = Name + ".Session"

	peerInterface       = "org.freedesktop.DBus.Peer"
	introspectable      = "org.freedesktop.DBus.Introspectable"
	propertiesInterface = "org.freedesktop.DBus.Properties"
)

func sessionPath(id string) godbus.ObjectPath {
	return sessionsPath + "/" + godbus.ObjectPath(id)
}

// method is a method of an interface, for all objects that have it.
type method struct {
	in    string // types of its arguments
	files int    // how many descriptors it takes at most
	open  bool   // anyone may call it
	call  func(*server, context.Context, caller, *message) ([]any, error)
}

// permits says who may call a method: root, and who runs the service, which is root but in tests.
func (f *method) permits(who caller, m *message) error {
	if f.open || who.trusted() {
		return nil
	}
	return fail.New(fail.AccessDenied, "run it as root", "only root may call %s", member(m))
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
			"Ping":         {open: true, call: (*server).ping},
			"GetMachineId": {open: true, call: (*server).machineID},
		},
		introspectable: {
			"Introspect": {open: true, call: (*server).introspect},
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
			managerInterface: {
				"ListMachines":     {call: (*server).listMachines},
				"Attach":           {in: "sasa{sv}", files: 3, call: (*server).attach},
				"ListSessions":     {call: (*server).listSessions},
				"GetSession":       {in: "s", call: (*server).getSession},
				"TerminateSession": {in: "s", call: (*server).terminateSession},
			},
			propertiesInterface: properties,
		}),
		session: between.with(object{
			sessionInterface: {
				"Terminate": {call: (*server).terminateObject},
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
	case path == managerPath:
		return all.manager
	case path == sessionsPath, below(managerPath, path):
		return all.between
	case below(path, sessionsPath) && !strings.Contains(idOf(path), "/"):
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
	return strings.TrimPrefix(string(path), string(sessionsPath)+"/")
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

// sessionAt finds the session whose object is called.
func (s *server) sessionAt(m *message) (*entry, error) {
	if e := s.sessions.get(idOf(pathOf(m))); e != nil {
		return e, nil
	}
	return nil, protocolError("UnknownObject", "no object at %s", pathOf(m))
}

func (s *server) terminateObject(ctx context.Context, who caller, m *message) ([]any, error) {
	e, err := s.sessionAt(m)
	if err != nil {
		return nil, err
	}
	return nil, s.terminate(ctx, who, e)
}
