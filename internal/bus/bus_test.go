package bus

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestSocketName(t *testing.T) {
	for _, c := range []struct{ address, want string }{
		{"unix:path=/run/dbus/system_bus_socket", "/run/dbus/system_bus_socket"},
		{"unix:path=/a%20b,guid=0123", "/a b"},
		{"unix:guid=0123,path=/a", "/a"},
		{"unix:abstract=x", "@x"},
		{"unix:path=%zz", ""},
		{"tcp:host=localhost", ""},
		{"unix:", ""},
		{"", ""},
	} {
		got, err := socketName(c.address)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("socketName(%q) = %q, %v; want %q", c.address, got, err, c.want)
		}
	}
}

func TestNoBusIsNotSupported(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	_, err := Connect(context.Background())
	if !fail.Is(err, fail.NotSupported) || fail.From(err).Hint == "" {
		t.Fatalf("Connect = %v, want NotSupported with a hint", err)
	}
}

// A bus that accepts and says nothing must not hold up a debugging tool.
func TestConnectIsBoundedByContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mute")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := Connect(ctx); err == nil {
		t.Fatal("connected to a mute bus")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("took %v", d)
	}
}

func TestErrorName(t *testing.T) {
	wrapped := fmt.Errorf("listing: %w", godbus.Error{Name: serviceUnknown})
	pointer := fmt.Errorf("listing: %w", &godbus.Error{Name: systemdPrefix + "NoSuchUnit"})
	if !NotInstalled(wrapped) || NotStarted(wrapped) {
		t.Error("ServiceUnknown is not seen as not installed")
	}
	if NotInstalled(pointer) || !NotStarted(pointer) {
		t.Error("NoSuchUnit is not seen as not started")
	}
	if ErrorName(context.Canceled) != "" {
		t.Error("an error of another kind has a name")
	}
}
