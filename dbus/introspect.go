package dbus

import (
	"context"
	_ "embed" // for the interface
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// interfaceXML is the interface as it is documented and installed. The service answers introspection
// from it, and a test holds the two together.
//
//go:embed org.cntr.Attach1.xml
var interfaceXML []byte

// introspect describes the object at the path of the call, and names those below it. Sessions are only
// named to who may list them.
func (s *server) introspect(_ context.Context, who caller, m *message) ([]any, error) {
	path := pathOf(m)
	var children []string
	switch {
	case path == sessionsPath && who.trusted():
		for _, e := range s.sessions.list() {
			children = append(children, e.ID)
		}
	case path == sessionsPath:
	case path == managerPath:
		children = []string{"session"}
	case below(path, sessionsPath):
		if !who.trusted() {
			return nil, fail.New(fail.AccessDenied, "run it as root", "only root may look at sessions")
		}
		if _, err := s.sessionAt(m); err != nil {
			return nil, err
		}
	default:
		rest := strings.TrimPrefix(strings.TrimPrefix(string(managerPath), string(path)), "/")
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
	if err := xml.Unmarshal(interfaceXML, &own); err != nil {
		return "", fmt.Errorf("org.cntr.Attach1.xml: %w", err)
	}
	known := slices.Concat(own.Interfaces,
		[]introspect.Interface{introspect.IntrospectData, introspect.PeerData, prop.IntrospectData})
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
