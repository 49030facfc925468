package server

import (
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"

	"github.com/cntr-attach/cntr-attach/dbus"
)

// introspect describes the object at the path of the call, and names those below it. Sessions are only
// named to who may list them.
func (s *server) introspect(ctx context.Context, who caller, m *message) ([]any, error) {
	path := pathOf(m)
	var children []string
	switch {
	case path == dbus.SessionsPath:
		all := s.visible(ctx, who.quiet(), nil, actionInspect) == nil
		for _, e := range s.sessions.list() {
			if all || who.owns(e) {
				children = append(children, e.ID)
			}
		}
	case path == dbus.ManagerPath:
		children = []string{"session"}
	case below(path, dbus.SessionsPath):
		if _, err := s.sessionAt(ctx, who.quiet(), m, actionInspect); err != nil {
			return nil, err
		}
	default:
		rest := strings.TrimPrefix(strings.TrimPrefix(string(dbus.ManagerPath), string(path)), "/")
		next, _, _ := strings.Cut(rest, "/")
		children = []string{next}
	}
	text, err := describe(s.objects.at(path), children)
	if err != nil {
		return nil, err
	}
	return []any{text}, nil
}

// describe returns the introspection data of an object.
func describe(o object, children []string) (string, error) {
	var own introspect.Node
	if err := xml.Unmarshal(dbus.Interface, &own); err != nil {
		return "", fmt.Errorf("org.cntr.Attach1.xml: %w", err)
	}
	known := slices.Concat(own.Interfaces,
		[]introspect.Interface{introspect.IntrospectData, introspect.PeerData, prop.IntrospectData, objectManagerData})
	var node introspect.Node
	for _, name := range slices.Sorted(maps.Keys(o)) {
		i := slices.IndexFunc(known, func(i introspect.Interface) bool { return i.Name == name })
		if i < 0 {
			return "", fmt.Errorf("interface %s is not described", name)
		}
		node.Interfaces = append(node.Interfaces, known[i])
	}
	for _, name := range children {
		node.Children = append(node.Children, introspect.Node{Name: name})
	}
	text, err := xml.MarshalIndent(node, "", "  ")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(introspect.IntrospectDeclarationString) + "\n" + string(text) + "\n", nil
}

// objectManagerData is org.freedesktop.DBus.ObjectManager (D-Bus specification, "Standard Interfaces").
var objectManagerData = introspect.Interface{
	Name: objectManager,
	Methods: []introspect.Method{{
		Name: "GetManagedObjects", Args: []introspect.Arg{{Name: "objects", Type: "a{oa{sa{sv}}}", Direction: "out"}},
	}},
	Signals: []introspect.Signal{
		{Name: "InterfacesAdded", Args: []introspect.Arg{{Name: "object", Type: "o"}, {Name: "interfaces", Type: "a{sa{sv}}"}}},
		{Name: "InterfacesRemoved", Args: []introspect.Arg{{Name: "object", Type: "o"}, {Name: "interfaces", Type: "as"}}},
	},
}
