package dbus

import (
	_ "embed" // for the interface

	godbus "github.com/godbus/dbus/v5"
)

// The service's names.
const (
	Name = "org.cntr.Attach1" // of the service, and the root of its interfaces and errors

	ManagerPath      = godbus.ObjectPath("/org/cntr/Attach1")
	SessionsPath     = ManagerPath + "/session"
	ManagerInterface = Name + ".Manager"
	SessionInterface = Name + ".Session"
)

// Interface is the interface as it is documented and installed: introspection data of D-Bus. The service answers
// introspection from it, and a test holds the two together.
//
//go:embed org.cntr.Attach1.xml
var Interface []byte

// What Attach's option "label" takes.
const (
	LabelMachine = "machine"
	LabelOff     = "off"
)

// Stdio returns how Attach's options for the command's three descriptors are called.
func Stdio() [3]string { return [3]string{"stdin", "stdout", "stderr"} }
