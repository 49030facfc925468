package dbus

import (
	"context"
	"os"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Client calls the service. It may be used by several goroutines at once. All its errors carry a
// *[fail.Error], with the server's code, message and hint if it has answered.
type Client struct {
	conn *godbus.Conn

	// Interactive lets calls wait for a password that polkit asks somebody for: there must be an agent that does
	// (pkttyagent(1)). It is to be set before the first call.
	Interactive bool
}

// AttachOptions is what a client asks of a session.
type AttachOptions struct {
	Command          []string // argv; never empty
	Shell            bool     // the command is the caller's shell, for which /bin/sh will do if the image does not have it
	Image            string   // the tools: a name, an absolute path, "docker:tools"; "" is what is configured, or the host
	User             string   // name or number in the machine; "" is root
	Environment      []string // NAME=VALUE
	CallerEnv        []string // likewise, of the caller's own: PATH and SHELL only with the host as image
	WorkingDirectory string   // absolute; "-" in front: "/" if it cannot be entered; "" is "/"
	Writable         bool     // the tools tree may be written to
	Strict           bool     // no capability but the machine's, and none of its variables
	Capabilities     []string // at most these, see session.ParseCapabilities; nil: all that there can be
	NoLabel          bool     // do not take on the machine's AppArmor or SELinux label
	Properties       []string // of the scope, NAME=VALUE: "CPUQuota=20%"
	Terminal         bool     // give the command a terminal
	Rows, Columns    uint16   // the terminal's size; 0 if not known

	// Without a terminal: pipes or sockets. They stay the caller's, and should be closed after Attach,
	// so that their other ends see when the session closes its own. nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
}

// Attached is a session that was started. Its descriptors are its owner's to close, and do not block a
// goroutine's thread.
type Attached struct {
	ID       string
	Terminal *os.File // the terminal's master; nil without a terminal
	Status   *os.File // where the session tells its end, see package session
	Notes    []string // what went wrong on the way, see Attach in org.cntr.Attach1.xml
}

// Machine is a row of [Client.ListMachines].
type Machine struct {
	Name    string // its name, unique in its kind
	Kind    string // "nspawn"
	Class   string // "container"
	Service string // who registered it: "systemd-nspawn"
	Leader  uint32 // process id of its first process
}

// SessionInfo is a row of [Client.ListSessions].
type SessionInfo struct {
	ID      string
	Machine string // typed name: "nspawn:web"
	User    string // "" is root
	Command []string
	Scope   string            // its unit
	Path    godbus.ObjectPath // its object
}

// Connect connects to the system bus. It does not start the service: the first call does. A bus that is
// not there is fail.NotSupported. The context bounds the connecting only.
func Connect(ctx context.Context) (*Client, error) {
	conn, err := bus.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if !conn.SupportsUnixFDs() {
		_ = conn.Close()
		return nil, fail.New(fail.NotSupported, "as root, --direct does without the bus",
			"this bus does not pass descriptors")
	}
	return &Client{conn: conn}, nil
}

// Close ends the connection. Sessions go on.
func (c *Client) Close() error { return c.conn.Close() }

// Attach starts a session in a machine, given by its name or typed name. It returns when the command
// runs, or with the reason why it does not.
func (c *Client) Attach(ctx context.Context, machine string, o AttachOptions) (*Attached, error) {
	options, err := o.encode()
	if err != nil {
		return nil, err
	}
	if err := checkText("machine", machine); err != nil {
		return nil, err
	}
	var id string
	var path godbus.ObjectPath
	var status godbus.UnixFD
	var results map[string]godbus.Variant
	err = c.call(ctx, "Attach", machine, o.Command, options).Store(&id, &path, &status, &results)
	if err != nil {
		return nil, decodeError(err)
	}
	a := &Attached{ID: id, Status: pollable(int(status), "status")}
	if fd, ok := results["terminal"].Value().(godbus.UnixFD); ok {
		a.Terminal = pollable(int(fd), "terminal")
	}
	a.Notes, _ = results["notes"].Value().([]string)
	return a, nil
}

// pollable makes a file of a descriptor that was received. Non-blocking, it is waited for by the
// runtime's poller: no thread is held up, and a Close ends a pending Read.
func pollable(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true) // should it fail, reads are only less convenient
	return os.NewFile(uintptr(fd), name)
}

// KillSession sends a signal to the processes of a session. Errors carry fail.NoSuchSession.
func (c *Client) KillSession(ctx context.Context, id string, signal int) error {
	if err := checkText("session id", id); err != nil {
		return err
	}
	return decodeError(c.call(ctx, "KillSession", id, int32(signal)).Err)
}

// ListMachines returns the machines that can be attached to, sorted by kind and name.
func (c *Client) ListMachines(ctx context.Context) ([]Machine, error) {
	var list []Machine
	err := c.call(ctx, "ListMachines").Store(&list)
	return list, decodeError(err)
}

// ListSessions returns the running sessions in the order in which they started.
func (c *Client) ListSessions(ctx context.Context) ([]SessionInfo, error) {
	var list []SessionInfo
	err := c.call(ctx, "ListSessions").Store(&list)
	return list, decodeError(err)
}

// TerminateSession ends a session, and returns when it has ended. Errors carry fail.NoSuchSession.
func (c *Client) TerminateSession(ctx context.Context, id string) error {
	if err := checkText("session id", id); err != nil {
		return err
	}
	return decodeError(c.call(ctx, "TerminateSession", id).Err)
}

// call calls a method of the manager.
func (c *Client) call(ctx context.Context, member string, args ...any) *godbus.Call {
	return c.callAt(ctx, ManagerPath, ManagerInterface, member, args...)
}

func (c *Client) callAt(ctx context.Context, path godbus.ObjectPath, iface, member string, args ...any) *godbus.Call {
	// Built by hand: Object.Call drops the flag (godbus v5.2.4).
	m := bus.MethodCall(Name, path, iface, member, args)
	if len(args) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	if c.Interactive {
		m.Flags |= godbus.FlagAllowInteractiveAuthorization
	}
	call := c.conn.SendWithContext(ctx, m, make(chan *godbus.Call, 1))
	return <-call.Done
}

// encode returns the options as Attach takes them. What is not set is not sent.
func (o AttachOptions) encode() (map[string]godbus.Variant, error) {
	if len(o.Command) == 0 {
		return nil, fail.New(fail.InvalidArgument, "", "invalid argv: it names no command")
	}
	for _, texts := range []struct {
		what string
		list []string
	}{
		{"argument", o.Command},
		{"environment", o.Environment},
		{"environment", o.CallerEnv},
		{"image", []string{o.Image}},
		{"property", o.Properties},
		{"user", []string{o.User}},
		{"working directory", []string{o.WorkingDirectory}},
	} {
		for _, text := range texts.list {
			if err := checkText(texts.what, text); err != nil {
				return nil, err
			}
		}
	}
	options := map[string]godbus.Variant{}
	set := func(name string, given bool, value any) {
		if given {
			options[name] = godbus.MakeVariant(value)
		}
	}
	set("shell", o.Shell, true)
	set("image", o.Image != "", o.Image)
	set("caller-environment", len(o.CallerEnv) > 0, o.CallerEnv)
	set("user", o.User != "", o.User)
	set("environment", len(o.Environment) > 0, o.Environment)
	set("working-directory", o.WorkingDirectory != "", o.WorkingDirectory)
	set("writable", o.Writable, true)
	set("strict", o.Strict, true)
	set("capabilities", o.Capabilities != nil, o.Capabilities)
	set("label", o.NoLabel, LabelOff)
	set("properties", len(o.Properties) > 0, o.Properties)
	set("terminal", o.Terminal, true)
	set("rows", o.Rows != 0, o.Rows)
	set("columns", o.Columns != 0, o.Columns)
	stdio := Stdio()
	for i, f := range []*os.File{o.Stdin, o.Stdout, o.Stderr} {
		if f != nil {
			set(stdio[i], true, godbus.UnixFD(f.Fd()))
		}
	}
	return options, nil
}

// checkText refuses what D-Bus cannot carry: its strings are UTF-8 without NUL, and a bus throws out
// who sends others.
func checkText(what, s string) error {
	if !utf8.ValidString(s) {
		return fail.New(fail.InvalidArgument, "as root, --direct takes any bytes",
			"%s %q cannot go over the bus: it is not UTF-8", what, s)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return fail.New(fail.InvalidArgument, "", "%s %q has a NUL byte", what, s)
		}
	}
	return nil
}
