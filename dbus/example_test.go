package dbus_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// Runs a command in a machine and waits for its end.
func ExampleClient_Attach() {
	ctx := context.Background()
	client, err := dbus.Connect(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	read, write, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	attached, err := client.Attach(ctx, "web", dbus.AttachOptions{
		Command: []string{"ss", "-tlnp"}, Stdout: write, Properties: []string{"CPUQuota=20%"},
	})
	_ = write.Close() // the session has its own
	if err != nil {
		log.Fatal(err)
	}
	defer attached.Status.Close() // the session ends with it
	if _, err := read.WriteTo(os.Stdout); err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.Read(attached.Status).Summary())
}
