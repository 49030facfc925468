// Package fail holds the one error type that a user is ever shown.
//
// A failure is born deep inside — no such machine, no such command — and travels through a session's
// control socket, over the bus and up to the terminal. On the way it keeps a [Code], which the edges
// translate (the bus into an error name, the command line into an exit status), a message that says
// what failed and on what, and a hint that says what to do about it.
package fail

import (
	"errors"
	"fmt"
)

// Code says what kind of failure it is. Codes are stable: they are sent between processes, and package
// dbus maps each to an error name of org.cntr.Attach1.
type Code string

// The codes.
const (
	Internal         Code = "Internal"         // anything that has no code of its own
	InvalidArgument  Code = "InvalidArgument"  // the caller asked for something malformed
	AccessDenied     Code = "AccessDenied"     // the caller may not do this
	Unauthenticated  Code = "Unauthenticated"  // the caller may do this once they have authenticated
	LimitsExceeded   Code = "LimitsExceeded"   // there is no room for more
	NotSupported     Code = "NotSupported"     // this kernel, or this system, cannot do it
	Misconfigured    Code = "Misconfigured"    // root's configuration is wrong
	NoSuchMachine    Code = "NoSuchMachine"    // no resolver knows the machine
	AmbiguousMachine Code = "AmbiguousMachine" // more than one resolver knows the machine
	NotRunning       Code = "NotRunning"       // the machine exists but does not run, or is gone meanwhile
	NotAContainer    Code = "NotAContainer"    // the machine is a virtual machine, or the host itself
	Unresponsive     Code = "Unresponsive"     // the machine, or a file system that it serves, does not answer
	NoSuchImage      Code = "NoSuchImage"      // there is no such tools tree, or it is none
	NoSuchSession    Code = "NoSuchSession"    // no session has this id
	NoSuchUser       Code = "NoSuchUser"       // the machine has no such user
	CommandNotFound  Code = "CommandNotFound"  // the command does not exist in the tools tree
	CannotRun        Code = "CannotRun"        // the command exists but cannot be executed
)

// Error is a failure with all that its reader needs.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`        // what failed, on what: lower case, no full stop
	Hint    string `json:"hint,omitempty"` // what to do about it; may be empty

	err error
}

// Error returns the message, without the hint.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the error that caused this one, or nil.
func (e *Error) Unwrap() error { return e.err }

// New makes a failure. The format and arguments are those of [fmt.Errorf], %w included.
func New(code Code, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Hint: hint, err: errors.Unwrap(err)}
}

// From returns the failure in err's chain, with the message of the whole chain; an error that has none
// becomes an [Internal] one. From(nil) is nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return &Error{Code: e.Code, Message: err.Error(), Hint: e.Hint, err: err}
	}
	return &Error{Code: Internal, Message: err.Error(), err: err}
}

// Is reports whether err carries a failure with this code.
func Is(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
