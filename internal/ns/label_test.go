package ns

import "testing"

func TestParseLabel(t *testing.T) {
	for text, want := range map[string]string{
		"unconfined\n":                               "unconfined",
		"docker-default (enforce)\n":                 "docker-default",
		"lxc-a//&:lxc-a:unconfined (mixed)\n":        "lxc-a//&:lxc-a:unconfined",
		"/usr/bin/a (b) c (complain)\n":              "/usr/bin/a (b) c",
		"system_u:system_r:container_t:s0:c1,c2\x00": "system_u:system_r:container_t:s0:c1,c2",
		"": "",
	} {
		if got := parseLabel(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// A label is written for whatever comes: a module's name for it is all that is looked at.
func TestPlanLabelWritesWhatTheModuleWants(t *testing.T) {
	for _, m := range modules {
		var p program
		planLabel(&p, Label{Name: "web", attribute: m.exec, command: m.command})
		last := p.steps[len(p.steps)-1]
		if want := len(m.command + "web"); int(last.args[2]) != want {
			t.Errorf("%s: %d bytes are written, want %d", m.name, last.args[2], want)
		}
	}
	var p program
	planLabel(&p, Label{})
	if len(p.steps) != 0 {
		t.Errorf("no label takes %d steps", len(p.steps))
	}
}
