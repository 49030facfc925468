package dbus

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// errorNames is the one place where a failure's code meets its name on the bus. The service uses it one
// way, the client the other. Where D-Bus has a name of its own for something, it is used.
var errorNames = map[fail.Code]string{
	fail.Internal:        standardError + "Failed",
	fail.InvalidArgument: standardError + "InvalidArgs",
	fail.AccessDenied:    standardError + "AccessDenied",
	fail.NotSupported:    standardError + "NotSupported",
	fail.Unauthenticated: standardError + "InteractiveAuthorizationRequired",
	fail.LimitsExceeded:  standardError + "LimitsExceeded",

	fail.Misconfigured:    ownError + "Misconfigured",
	fail.NoSuchMachine:    ownError + "NoSuchMachine",
	fail.AmbiguousMachine: ownError + "AmbiguousMachine",
	fail.NotRunning:       ownError + "NotRunning",
	fail.NotAContainer:    ownError + "NotAContainer",
	fail.Unresponsive:     ownError + "Unresponsive",
	fail.NoSuchImage:      ownError + "NoSuchImage",
	fail.NoSuchSession:    ownError + "NoSuchSession",
	fail.NoSuchUser:       ownError + "NoSuchUser",
	fail.CommandNotFound:  ownError + "CommandNotFound",
	fail.CannotRun:        ownError + "CannotRun",
}

const (
	standardError = "org.freedesktop.DBus.Error."
	ownError      = Name + "."
)

// ErrorName returns the name that errors with a code have on the bus, if there is one.
func ErrorName(code fail.Code) (name string, known bool) {
	name, known = errorNames[code]
	return name, known
}

// codes is errorNames the other way round.
var codes = func() map[string]fail.Code {
	m := make(map[string]fail.Code, len(errorNames))
	for code, name := range errorNames {
		m[name] = code
	}
	return m
}()

// decodeError turns the error of a call into one that carries a *[fail.Error], with the server's
// message and hint where the server has answered.
func decodeError(err error) error {
	if err == nil {
		return nil
	}
	name := bus.ErrorName(err)
	switch {
	case bus.NotInstalled(err):
		return fail.New(fail.NotSupported, "install cntr-attach's service or, as root, use --direct",
			"%s is not on the bus: %w", Name, err)
	case bus.NotStarted(err):
		return fail.New(fail.NotSupported, "see journalctl -u cntr-attachd; as root, --direct does without it",
			"cntr-attachd cannot be started: %w", err)
	case name == standardError+"NoReply", name == standardError+"Timeout", name == standardError+"TimedOut",
		errors.Is(err, context.DeadlineExceeded):
		return fail.New(fail.Internal, "see systemctl status cntr-attachd", "cntr-attachd does not answer: %w", err)
	case name == "":
		return fmt.Errorf("calling cntr-attachd: %w", err)
	}
	code, known := codes[name]
	if !known {
		code = fail.Internal
	}
	message, hint := errorBody(err)
	return fail.New(code, hint, "%s", message)
}

// errorBody returns the message of an error reply and, if the server is ours, its hint.
func errorBody(err error) (message, hint string) {
	var e godbus.Error
	if !errors.As(err, &e) {
		var p *godbus.Error
		if !errors.As(err, &p) {
			return err.Error(), ""
		}
		e = *p
	}
	if len(e.Body) > 0 {
		message, _ = e.Body[0].(string)
	}
	if len(e.Body) > 1 {
		hint, _ = e.Body[1].(string)
	}
	if message == "" {
		message = e.Name
	}
	return message, hint
}
