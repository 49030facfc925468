package server

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"slices"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	"github.com/cntr-attach/cntr-attach/dbus"
)

func parseIntrospection(t *testing.T, o object) introspect.Node {
	t.Helper()
	text, err := describe(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	var node introspect.Node
	if err := xml.Unmarshal([]byte(text), &node); err != nil {
		t.Fatal(err)
	}
	return node
}

func TestObjectTree(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	c := connectBus(t)
	for _, test := range []struct {
		path     godbus.ObjectPath
		children []string
	}{
		{"/", []string{"org"}},
		{"/org", []string{"cntr"}},
		{"/org/cntr", []string{"Attach1"}},
		{dbus.ManagerPath, []string{"session"}},
		{dbus.SessionsPath, nil},
	} {
		var text string
		if err := c.Object(dbus.Name, test.path).Call(introspectable+".Introspect", 0).Store(&text); err != nil {
			t.Errorf("%s: %v", test.path, err)
			continue
		}
		var node introspect.Node
		if err := xml.Unmarshal([]byte(text), &node); err != nil {
			t.Errorf("%s: %v", test.path, err)
		}
		var children []string
		for _, n := range node.Children {
			children = append(children, n.Name)
		}
		if !slices.Equal(children, test.children) {
			t.Errorf("%s has the children %q, want %q", test.path, children, test.children)
		}
	}
	for _, path := range []godbus.ObjectPath{
		"/com", "/org/cntr/Attach", "/org/cntr/Attach1/sessions",
		dbus.SessionsPath + "/1/2", dbus.SessionsPath + "/none",
	} {
		if err := c.Object(dbus.Name, path).Call(introspectable+".Introspect", 0).Err; err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}

// What the bus hands over is decoded or refused. It never ends the service.
func FuzzDecode(f *testing.F) {
	m := busCall("RequestName", []any{dbus.Name, uint32(4), map[string]godbus.Variant{"a": godbus.MakeVariant([]string{"b"})}})
	m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(m.Body...))
	var buf bytes.Buffer
	if err := m.EncodeTo(&buf, binary.LittleEndian); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(_ *testing.T, b []byte) { decode(b) })
}
