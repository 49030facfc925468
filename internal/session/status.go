package session

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Status is how a session ended. It reaches the client as one line of JSON on the status pipe, which the
// session process itself writes to: neither the service nor the bus need be there any more. A pipe that
// ends without it tells that the session process was killed.
//
// The pipe is also the client's hold on the session: when its reading end is closed, the session ends.
type Status struct {
	Exit       int           `json:"exit"`                 // the command's exit status
	Signal     int           `json:"signal,omitempty"`     // the signal that killed the command; 0 if it exited
	Wall       time.Duration `json:"wall,omitempty"`       // from its start to its end
	Usage      *Usage        `json:"usage,omitempty"`      // what it has cost; nil if that is not known
	Terminated bool          `json:"terminated,omitempty"` // somebody ended the session
	Error      *fail.Error   `json:"error,omitempty"`      // the session failed; nothing else is then of use
}

// ExitCode returns the exit status that a shell would give: the command's own, 128+N if signal N killed
// it, 125 if the session failed.
func (s Status) ExitCode() int {
	switch {
	case s.Error != nil:
		return 125
	case s.Signal != 0:
		return 128 + s.Signal
	}
	return s.Exit
}

// ReadStatus reads a session's end from its status pipe. It blocks until then.
func ReadStatus(pipe io.Reader) Status {
	var s Status
	if err := json.NewDecoder(pipe).Decode(&s); err != nil {
		return killed()
	}
	return s
}

// killed is the end of a session whose process could not tell any.
func killed() Status {
	return Status{Error: fail.New(fail.Internal, "see journalctl -u cntr-attachd", "the session process was killed")}
}

func (s Status) write(pipe *os.File) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(pipe, "%s\n", line)
	return err
}

// statusOf translates a wait status.
func statusOf(w unix.WaitStatus) Status {
	if w.Signaled() {
		return Status{Signal: int(w.Signal())}
	}
	return Status{Exit: w.ExitStatus()}
}
