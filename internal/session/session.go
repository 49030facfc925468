// Package session runs commands in machines.
//
// A session is one process, the session process, in a transient scope of its own. It serves the tools
// tree over FUSE, makes the terminal, enters the machine (package ns does that), waits for the command
// and tells the client how it ended. Nothing else is needed meanwhile: the service that started it may
// exit, crash or be upgraded.
//
// There are two sides. A [Launcher], in the service or in a command that does without one, starts
// session processes; [Main] is what such a process does. They talk over a socket until the command
// runs, and never again: from then on a session is known by its scope and by the command line of
// its process ([Launcher.Running]), and ended by a signal.
//
// A session ends when its command does, when its client closes the status pipe, when the machine stops,
// or on SIGTERM. Whatever the command left running then is killed: its root directory goes away.
package session

import (
	"os"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/units"
)

// Spec is what a caller asks of a session.
type Spec struct {
	Caller       *Caller          // for whom it is; nil is root
	Image        *image.Image     // the tools tree, owned by the caller; nil is the host
	Command      []string         // argv; never empty
	Shell        bool             // the command is the caller's shell, for which /bin/sh will do if the image does not have it
	Env          []string         // NAME=VALUE, all that the command gets but for what the session itself sets
	CallerEnv    []string         // likewise, what of the caller's own environment it gets: PATH and SHELL only from the host
	Dir          string           // working directory; "-" before it: "/" if it cannot be entered; "" is "/"
	User         string           // name or numeric id, looked up in the machine; "" is root
	Writable     bool             // the tools tree may be written to
	Strict       bool             // no capability that the machine's first process cannot have, and nothing of its environment
	Capabilities *Capabilities    // of those that the command would have; nil: all
	NoWatch      bool             // do not use one of the system's few fanotify groups
	NoLabel      bool             // do not take on the machine's AppArmor or SELinux label
	Terminal     bool             // give the command a new terminal, and its master to the caller
	Rows         uint16           // the terminal's size; 0 if not known
	Columns      uint16           // likewise
	Stdio        [3]*os.File      // stdin, stdout, stderr, when not Terminal: pipes or sockets, owned by the caller
	Properties   []units.Property // of its scope
	Status       *os.File         // where the end is told, see package status: the write end of a pipe, owned by the caller
}

// Info is what can be told about a running session. The session process carries it in its own command
// line, so that it lasts exactly as long as the session.
type Info struct {
	ID       string    `json:"id"`
	Machine  string    `json:"machine"` // typed name
	Class    string    `json:"class"`
	Service  string    `json:"service,omitempty"`
	Leader   int       `json:"leader"` // the machine's first process
	Owner    uint32    `json:"owner"`  // uid on the host of the person who started it
	User     string    `json:"user"`
	Command  []string  `json:"command"` // cut short if very long
	Image    string    `json:"image,omitempty"`
	Writable bool      `json:"writable,omitempty"`
	TTY      bool      `json:"tty,omitempty"` // the command has a terminal
	Started  time.Time `json:"started"`
	Scope    string    `json:"-"` // cntr-<machine>-<id>.scope; empty where there is no systemd
	PID      int       `json:"-"` // the session process
}

// Session is a session whose command runs.
type Session struct {
	Info
	Process  *machine.Leader // the session process; owned by the Session
	Terminal *os.File        // the terminal's master, when Spec.Terminal; owned by the Session
}
