//go:build integration && vm

package main

import "testing"

// The service itself talks to nobody by IP, and may not; its sessions may. It is a filter of its control group, which takes a kernel
// that has these.
func TestOnlyTheServiceIsDeniedTheNetwork(t *testing.T) {
	if got := must(t, "systemctl", "show", "--property=IPAddressDeny", "--value", "cntr-attachd.service"); got == "" {
		t.Error("the service may use the network")
	}
	const connect = "import socket; socket.create_connection(('127.0.0.1', 8080), 10)"
	must(t, "cntr-attach", "slim", "python3", "-c", connect)
}
