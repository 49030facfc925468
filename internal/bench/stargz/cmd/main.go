// Command stargz makes an image with eStargz layers of an image in a layout directory: stargz FROM TO.
package main

import (
	"fmt"
	"os"

	"github.com/cntr-attach/cntr-attach/internal/bench/stargz"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: stargz FROM TO")
		os.Exit(2)
	}
	if err := stargz.Convert(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}
