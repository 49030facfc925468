package session

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/cntr-attach/cntr-attach/internal/status"
)

// Identifiers of the journal's entries for the start and the end of a session, as in cntr-attach.catalog.
const (
	startedID = "aae6bfcd98cf4dcca5d7b47f1a5a7a01"
	endedID   = "5d2d4b1ad1c9459f9fb2b2f9f5b1be02"
)

// logStart and logEnd tell the journal who runs what where, with which rights and result. The session process does it
// itself: it is there at the end, whatever has become of the service, and for sessions without one.
func (p *process) logStart() {
	i := p.request.Info
	p.log(startedID, fmt.Sprintf("Session %s in %s started for uid %d as %s: %s",
		i.ID, i.Machine, i.Owner, i.User, strings.Join(i.Command, " ")), nil)
}

func (p *process) logEnd(s status.Status) {
	fields := map[string]string{
		"CNTR_EXIT_CODE":  strconv.Itoa(s.ExitCode()),
		"CNTR_RESULT":     s.Result(),
		"CNTR_WALL_NSEC":  strconv.FormatInt(int64(s.Wall), 10),
		"CNTR_TERMINATED": strconv.FormatBool(s.Terminated),
	}
	if s.Usage != nil {
		for name, n := range map[string]uint64{
			"CPU_USAGE_NSEC": s.Usage.CPUNSec, "MEMORY_PEAK": s.Usage.MemoryPeak,
			"IO_METRIC_READ_BYTES": s.Usage.IORead, "IO_METRIC_WRITE_BYTES": s.Usage.IOWritten,
		} {
			if n != status.Unknown {
				fields[name] = strconv.FormatUint(n, 10)
			}
		}
	}
	i := p.request.Info
	p.log(endedID, fmt.Sprintf("Session %s in %s ended: %s", i.ID, i.Machine, s.Summary()), fields)
}

func (p *process) log(id, message string, fields map[string]string) {
	if !journal.Enabled() {
		return // a host without it
	}
	i := p.request.Info
	all := map[string]string{
		"MESSAGE_ID":        id,
		"SYSLOG_IDENTIFIER": programName,
		"CNTR_SESSION":      i.ID,
		"CNTR_MACHINE":      i.Machine,
		"CNTR_CLASS":        i.Class,
		"CNTR_LEADER":       strconv.Itoa(i.Leader),
		"CNTR_CALLER_UID":   strconv.FormatUint(uint64(i.Owner), 10),
		"CNTR_USER":         i.User,
		"CNTR_COMMAND":      strings.Join(i.Command, " "),
		"CNTR_WRITABLE":     strconv.FormatBool(i.Writable),
		"CNTR_SCOPE":        p.request.Scope,
		"OBJECT_PID":        strconv.Itoa(os.Getpid()),
		// Shown with the service's own entries.
		"OBJECT_SYSTEMD_UNIT": "cntr-attachd.service",
	}
	for name, value := range fields {
		all[name] = value
	}
	if err := journal.Send(message, journal.PriInfo, all); err != nil {
		fmt.Fprintf(os.Stderr, "cntr-session: %s (the journal does not take it: %v)\n", message, err)
	}
}
