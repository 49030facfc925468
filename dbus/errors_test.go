package dbus

import (
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestEveryCodeHasAName(t *testing.T) {
	for _, code := range []fail.Code{
		fail.Internal, fail.InvalidArgument, fail.AccessDenied, fail.NotSupported, fail.NoSuchMachine,
		fail.AmbiguousMachine, fail.NotRunning, fail.NotAContainer, fail.NoSuchImage, fail.NoSuchSession, fail.NoSuchUser,
		fail.CommandNotFound, fail.CannotRun,
	} {
		name := errorNames[code]
		if name == "" || codes[name] != code {
			t.Errorf("code %s has the name %q, which has the code %q", code, name, codes[name])
		}
	}
	if len(codes) != len(errorNames) {
		t.Error("two codes share a name")
	}
}
