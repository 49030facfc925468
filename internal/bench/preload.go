package bench

import (
	_ "embed"
	"fmt"
	"os/exec"
	"strings"
)

//go:embed preload/cntr.c
var preloadSource string

// preload is the library that cntr 1.6.0 is run with; preload/cntr.c says why.
const preload = dir + "/preload.so"

// buildPreload makes the library, on the test host.
func buildPreload() error {
	cmd := exec.Command("gcc", "-Wall", "-O2", "-shared", "-fPIC", "-x", "c", "-o", preload, "-")
	cmd.Stdin = strings.NewReader(preloadSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build what cntr needs to start: %w\n%s", err, out)
	}
	return nil
}
