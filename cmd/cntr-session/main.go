// Command cntr-session is one session; see package session. It is started by cntr-attachd and takes no
// arguments from people.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/cntr-attach/cntr-attach/internal/session"
)

// The children of a session process are told of the death of the thread that forked them: it has to
// be the one that lives as long as the process.
func init() { runtime.LockOSThread() }

func main() {
	if !session.IsProcess() {
		fmt.Fprintln(os.Stderr, "cntr-session: started by cntr-attachd, not by hand\nhint: use cntr-attach")
		os.Exit(125)
	}
	os.Exit(session.Main())
}
