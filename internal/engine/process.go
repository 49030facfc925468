// Package engine resolves machines that have no package of their own: bare processes, and the engines
// that are asked over a socket.
package engine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// Process resolves "pid:N": whatever namespaces process N is in are the machine. It asks nobody, so it
// works where nothing else does.
type Process struct{}

var _ machine.TypedOnly = Process{}

// Kind returns "pid".
func (Process) Kind() string { return "pid" }

// TypedOnly says that a bare number is no process.
func (Process) TypedOnly() {}

// Resolve holds on to process N. A name that is not a number is no machine of this kind.
func (Process) Resolve(_ context.Context, name string) (*machine.Machine, error) {
	pid, err := strconv.Atoi(name)
	if err != nil || pid <= 0 {
		return nil, fail.New(fail.NoSuchMachine, "", "%q is not a process id", name)
	}
	leader, err := machine.OpenLeader(pid)
	if fail.Is(err, fail.NotRunning) {
		return nil, fail.New(fail.NoSuchMachine, "", "no process has the id %d", pid)
	}
	if err != nil {
		return nil, err
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || !leader.Alive() {
		_ = leader.Close()
		return nil, fail.New(fail.NotRunning, "", "process %d has just ended", pid)
	}
	return &machine.Machine{
		Kind: "pid", Name: name, Class: "process", Service: strings.TrimSpace(string(comm)), Leader: leader,
	}, nil
}

// List returns nothing: every process would be one.
func (Process) List(context.Context) ([]machine.Info, error) { return nil, nil }
