// Package bus connects to the system bus, within the time that a context allows.
//
// godbus would do, but for two things. Its WithContext does not bound the connecting: it ties the
// connection's whole life to the context, so that a deadline meant for one call would close the
// connection under all others. And its errors do not tell a bus that is not there, which a user can
// work around, from one that answers wrongly.
package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Address returns the address of the system bus: $DBUS_SYSTEM_BUS_ADDRESS, else the well-known socket
// (D-Bus specification, "Well-known Message Bus Instances").
func Address() string {
	if a := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return "unix:path=/run/dbus/system_bus_socket"
}

// Dial opens a connection to the system bus on which nothing has been said yet. A bus that is not there
// is fail.NotSupported.
func Dial(ctx context.Context) (*net.UnixConn, error) {
	return dial(ctx, Address())
}

// Connect connects to the system bus and says Hello. The context bounds the connecting only. A bus that
// is not there is fail.NotSupported.
func Connect(ctx context.Context) (*godbus.Conn, error) {
	return connect(ctx, Address(), true)
}

// ConnectPeer connects to a program that speaks D-Bus on a socket of its own, without a bus between.
func ConnectPeer(ctx context.Context, path string) (*godbus.Conn, error) {
	return connect(ctx, "unix:path="+godbus.EscapeBusAddressValue(path), false)
}

func connect(ctx context.Context, address string, hello bool) (*godbus.Conn, error) {
	raw, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	// The deadline breaks a handshake with a bus that accepts and then says nothing.
	if d, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	conn, err := godbus.DialUnix(raw)
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	// EXTERNAL with the number, not the name: looking up a name may need the very services that are
	// being debugged.
	err = conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Geteuid()))})
	if err == nil && hello {
		err = conn.Hello()
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connecting to %s: %w", address, errors.Join(err, ctx.Err()))
	}
	_ = raw.SetDeadline(time.Time{})
	return conn, nil
}

func dial(ctx context.Context, address string) (*net.UnixConn, error) {
	var last error
	for one := range strings.SplitSeq(address, ";") {
		name, err := socketName(one)
		if err != nil {
			last = err
			continue
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", name)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		last = err
	}
	return nil, fail.New(fail.NotSupported, "as root, --direct does without the bus",
		"cannot reach the system bus: %w", last)
}

// socketName returns what [net.Dial] calls the socket of a D-Bus address.
func socketName(address string) (string, error) {
	transport, rest, _ := strings.Cut(address, ":")
	if transport == "unix" {
		for kv := range strings.SplitSeq(rest, ",") {
			key, escaped, _ := strings.Cut(kv, "=")
			value, err := godbus.UnescapeBusAddressValue(escaped)
			switch {
			case err != nil:
				return "", fmt.Errorf("bus address %q: %w", address, err)
			case key == "path":
				return value, nil
			case key == "abstract":
				return "@" + value, nil
			}
		}
	}
	return "", fmt.Errorf("bus address %q is not a unix socket's", address)
}

// Error names of the bus that say: nobody answers to this name, nor can anybody be started who would.
const (
	serviceUnknown = "org.freedesktop.DBus.Error.ServiceUnknown"
	nameHasNoOwner = "org.freedesktop.DBus.Error.NameHasNoOwner"
	spawnPrefix    = "org.freedesktop.DBus.Error.Spawn."
	systemdPrefix  = "org.freedesktop.systemd1."
)

// NotInstalled reports whether err says that no service of the called name is known on the bus.
func NotInstalled(err error) bool {
	name := ErrorName(err)
	return name == serviceUnknown || name == nameHasNoOwner
}

// NotStarted reports whether err says that the called service is known but could not be started: its
// unit is masked, missing or failed (the bus hands systemd's error through).
func NotStarted(err error) bool {
	name := ErrorName(err)
	return strings.HasPrefix(name, spawnPrefix) || strings.HasPrefix(name, systemdPrefix)
}

// ErrorName returns the D-Bus name of an error reply in err's chain, else "".
func ErrorName(err error) string {
	var value godbus.Error
	if errors.As(err, &value) {
		return value.Name
	}
	var pointer *godbus.Error
	if errors.As(err, &pointer) {
		return pointer.Name
	}
	return ""
}

// MethodCall returns a call of a method. Object.Call of godbus (v5.2.4) would drop its flags.
func MethodCall(destination string, path godbus.ObjectPath, iface, member string, args []any) *godbus.Message {
	return &godbus.Message{
		Type: godbus.TypeMethodCall,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(destination),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
		},
		Body: args,
	}
}
