package dbus

import (
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5/introspect"
)

// The interface is stable: programs rely on every line of the golden file. Lines may be added, with the version that
// brings them; one that changes or goes breaks somebody.
func TestInterfaceIsStable(t *testing.T) {
	var node introspect.Node
	if err := xml.Unmarshal(Interface, &node); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, i := range node.Interfaces {
		for _, m := range i.Methods {
			var in, out []string
			for _, a := range m.Args {
				if a.Direction == "out" {
					out = append(out, a.Name+" "+a.Type)
				} else {
					in = append(in, a.Name+" "+a.Type)
				}
			}
			lines = append(lines, fmt.Sprintf("%s.%s(%s) → (%s)%s", i.Name, m.Name, strings.Join(in, ", "), strings.Join(out, ", "), annotations(m.Annotations)))
		}
		for _, s := range i.Signals {
			var args []string
			for _, a := range s.Args {
				args = append(args, a.Name+" "+a.Type)
			}
			lines = append(lines, fmt.Sprintf("%s.%s signal (%s)%s", i.Name, s.Name, strings.Join(args, ", "), annotations(s.Annotations)))
		}
		for _, p := range i.Properties {
			lines = append(lines, fmt.Sprintf("%s.%s property %s %s%s", i.Name, p.Name, p.Type, p.Access, annotations(p.Annotations)))
			if !slices.ContainsFunc(p.Annotations, func(a introspect.Annotation) bool { return strings.HasSuffix(a.Name, "EmitsChangedSignal") }) {
				t.Errorf("property %s does not say whether it changes", p.Name)
			}
		}
	}
	for _, name := range errorNames {
		lines = append(lines, "error "+name)
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	const file = "testdata/interface.golden"
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the interface is no longer what %s says; if that is wanted, it should be\n%s", file, got)
	}
}

func annotations(list []introspect.Annotation) string {
	var b strings.Builder
	for _, a := range list {
		fmt.Fprintf(&b, " [%s=%s]", a.Name[strings.LastIndexByte(a.Name, '.')+1:], a.Value)
	}
	return b.String()
}
