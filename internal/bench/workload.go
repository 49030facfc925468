package bench

import (
	"fmt"
	"path/filepath"
	"time"
)

// dir is where everything is, on the test host and in every setting.
const dir = "/srv/bench"

// A Workload is something to be timed, or to count the upcalls of.
type Workload struct {
	Name  string
	Title string
	Bar   float64 // the most that ours may take, in times of native; 0: no more than cntr
	Ops   int     // how often it does what it is named after, for counts per operation

	cold   bool          // no caches
	pause  time.Duration // between preparation and run: more than what is believed for a second
	writes bool          // the session is writable; what is dirty is written back before it runs

	// host prepares the scratch directory from the host's side, before anybody in the setting has seen it.
	host func(p place) error
	// prepare runs in the setting, untimed. Nil for a warm workload means run.
	prepare func(p place) error
	run     func(p place) error
}

// Bars of the rows that have one.
const (
	barData = 1 / 0.95
	barExec = 1.2
	barWalk = 3
)

// A place is where a workload finds its files.
type place struct {
	work    string // the setting's own directory, kept
	scratch string // empty, new for each run
}

func (p place) data(elem ...string) string {
	return filepath.Join(append([]string{dir, "data"}, elem...)...)
}

// Workloads are the rows of the table.
func Workloads() []Workload {
	var all []Workload
	for _, group := range [][]Workload{dataWorkloads(), fileWorkloads(), commandWorkloads()} {
		all = append(all, group...)
	}
	return all
}

// find returns the workload of a name, be it timed or counted.
func find(name string) (*Workload, error) {
	for _, w := range append(append(Workloads(), Counted()...), walkMany) {
		if w.Name == name {
			return &w, nil
		}
	}
	return nil, fmt.Errorf("no workload %q", name)
}

// warmUp is what runs in the setting before the run is timed.
func (w *Workload) warmUp(p place) error {
	switch {
	case w.prepare != nil:
		return w.prepare(p)
	case w.cold:
		return nil
	}
	return w.run(p)
}
