package fail

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestFrom(t *testing.T) {
	inner := New(NoSuchMachine, "look again", "no machine is called %q: %w", "web", fs.ErrNotExist)
	outer := fmt.Errorf("attaching: %w", inner)
	got := From(outer)
	if got.Code != NoSuchMachine || got.Hint != "look again" || got.Message != `attaching: no machine is called "web": file does not exist` {
		t.Errorf("From = %+v", got)
	}
	if !Is(outer, NoSuchMachine) || Is(outer, Internal) || !errors.Is(outer, fs.ErrNotExist) || !errors.Is(got, fs.ErrNotExist) {
		t.Error("the chain is broken")
	}
	if plain := From(fs.ErrNotExist); plain.Code != Internal || !errors.Is(plain, fs.ErrNotExist) {
		t.Errorf("From of an error without a code = %+v", plain)
	}
	if From(nil) != nil || Is(nil, Internal) {
		t.Error("nil is a failure")
	}
}
