package server

import (
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestStrictAndLabelOptions(t *testing.T) {
	for _, test := range []struct {
		options         map[string]any
		strict, noLabel bool
		refused         string
	}{
		{map[string]any{}, false, false, ""},
		{map[string]any{"strict": true, "label": "off"}, true, true, ""},
		{map[string]any{"strict": false, "label": "machine"}, false, false, ""},
		{map[string]any{"strict": "yes"}, false, false, `invalid option strict: it is of type "s", not "b"`},
		{map[string]any{"label": "unconfined"}, false, false, `invalid option label: it is "unconfined", neither "off" nor "machine"`},
		{map[string]any{"label": ""}, false, false, `invalid option label: it is "", neither "off" nor "machine"`},
	} {
		options := map[string]godbus.Variant{"terminal": godbus.MakeVariant(true)}
		for name, value := range test.options {
			options[name] = godbus.MakeVariant(value)
		}
		spec, err := parseSpec([]string{"true"}, options, &message{})
		if test.refused != "" {
			if !fail.Is(err, fail.InvalidArgument) || err.Error() != test.refused {
				t.Errorf("%v: got %v, want %s", test.options, err, test.refused)
			}
		} else if err != nil || spec.Strict != test.strict || spec.NoLabel != test.noLabel {
			t.Errorf("%v: got %+v, %v", test.options, spec, err)
		}
	}
}
