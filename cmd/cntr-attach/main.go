// Command cntr-attach puts its user into a running container with the tools of the host; see
// cntr-attach(1).
package main

import (
	"context"
	"os"

	"github.com/cntr-attach/cntr-attach/internal/cli"
)

// version is set by the Makefile.
var version = "0.1.0-dev"

func main() {
	os.Exit(cli.Run(context.Background(), version, os.Args[1:], startSession))
}
