// Package dbus is org.cntr.Attach1 for those who call it: its names, and a client. The service is package server, below.
//
// # Errors
//
// All are [fail.Error]s, whose codes become D-Bus error names in one table (errors.go), and codes again
// in the client. An error has two strings, what failed and what to do about it. A failure without a
// code may speak of anything in the host: its text goes to the journal, and not to the caller.
//
// # The interface
//
// org.cntr.Attach1.xml describes the methods, signals and properties.
//
// The package is linked to what a user waits for at each start of a session: it stays small, and imports nothing of the
// service.
package dbus
