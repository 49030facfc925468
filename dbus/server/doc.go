// Package server is the service org.cntr.Attach1: it starts sessions for those who ask on the system bus. Package dbus has
// its names and a client for it.
//
// # What the service knows
//
// Nothing that it could lose. A session is a process in a scope of its own, which tells its end to its
// client over a pipe; systemd and the kernel know that it is there. A server finds what runs when it
// starts, watches the pidfds, and tells on the bus what it sees. That makes it disposable: it ends when
// there is nothing to do, may be killed or upgraded at any time, and the next call starts another one.
//
// # A call
//
// Each call is answered by a goroutine of its own, within a time. First comes the question who asks,
// which only the bus can answer; then whether they may; only then are the arguments looked at. What
// arrives with a message is closed when it has been answered, whatever the answer was, and so are the
// ends of pipes and terminals that are handed out.
//
// # The interface
//
// org.cntr.Attach1.xml describes the methods, signals and properties. The service answers introspection
// from that file.
package server
