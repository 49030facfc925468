package server

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// internalMessage is all that a caller is told of a failure without a code: it may speak of anything.
const internalMessage = "internal error; see journalctl -u cntr-attachd"

// encodeError returns what the bus is told of err, a message and a hint, and whether err has more to it
// that belongs in the journal.
func encodeError(err error) (reply *godbus.Error, internal bool) {
	var already *godbus.Error
	if errors.As(err, &already) {
		return already, false // an error of the protocol, see protocolError
	}
	e := fail.From(err)
	if e.Code == fail.Internal && errors.Is(err, context.DeadlineExceeded) {
		return protocolError("Timeout", "not done in time; see journalctl -u cntr-attachd"), true
	}
	name, known := dbus.ErrorName(e.Code)
	if !known || e.Code == fail.Internal {
		return protocolError("Failed", internalMessage), true
	}
	return godbus.NewError(name, []any{e.Message, e.Hint}), false
}

const standardError = "org.freedesktop.DBus.Error."

// protocolError is the answer to a message that no method could make sense of.
func protocolError(name, format string, args ...any) *godbus.Error {
	return godbus.NewError(standardError+name, []any{fmt.Sprintf(format, args...), ""})
}
