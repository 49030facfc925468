// Package status is how the end of a session is told: by the session process, to its client and to the service.
package status

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

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

// Read reads a session's end from its status pipe. It blocks until then.
func Read(pipe io.Reader) Status {
	var s Status
	if err := json.NewDecoder(pipe).Decode(&s); err != nil {
		return Killed()
	}
	return s
}

// Killed is the end of a session whose process could not tell any.
func Killed() Status {
	return Status{Error: fail.New(fail.Internal, "see journalctl -u cntr-attachd", "the session process was killed")}
}

// Write tells the end on the status pipe.
func (s Status) Write(pipe *os.File) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(pipe, "%s\n", line)
	return err
}

// Result says in one word how the session ended: "success", "exit-code", "signal", "terminated" or "failed".
func (s Status) Result() string {
	switch {
	case s.Error != nil:
		return "failed"
	case s.Terminated:
		return "terminated"
	case s.Signal != 0:
		return "signal"
	case s.Exit != 0:
		return "exit-code"
	}
	return "success"
}

// Summary tells how a session ended and what it cost, in one line.
func (s Status) Summary() string {
	var b strings.Builder
	switch {
	case s.Error != nil:
		b.WriteString(fail.From(s.Error).Message)
	case s.Signal != 0:
		fmt.Fprintf(&b, "signal %d", s.Signal)
	default:
		fmt.Fprintf(&b, "exit status %d", s.Exit)
	}
	if s.Terminated {
		b.WriteString(", terminated")
	}
	if s.Wall > 0 {
		fmt.Fprintf(&b, ", %v", s.Wall.Round(time.Millisecond))
	}
	if u := s.Usage; u != nil {
		if u.CPUNSec != Unknown {
			fmt.Fprintf(&b, ", %v CPU time", time.Duration(u.CPUNSec).Round(time.Millisecond))
		}
		for _, one := range []struct {
			n    uint64
			what string
		}{{u.MemoryPeak, "memory peak"}, {u.IORead, "read"}, {u.IOWritten, "written"}} {
			if one.n != Unknown {
				fmt.Fprintf(&b, ", %s %s", Bytes(one.n), one.what)
			}
		}
	}
	return b.String()
}

// Bytes writes a number of bytes as systemd does: 12.3M.
func Bytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"K", "M", "G", "T"} {
		value /= 1024
		if value < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f%s", value, unit)
}
