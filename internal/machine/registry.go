package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Registry asks a set of resolvers.
type Registry []Resolver

// Resolve finds the running machine that s names. A bare name is asked of every resolver: two machines
// with it are fail.AmbiguousMachine. The caller closes the machine.
func (g Registry) Resolve(ctx context.Context, s string) (*Machine, error) {
	ref, err := ParseRef(s)
	if err != nil {
		return nil, err
	}
	var found []*Machine
	var failed error
	asked := false
	for _, r := range g {
		if ref.Kind != "" && ref.Kind != r.Kind() {
			continue
		}
		asked = true
		m, err := r.Resolve(ctx, ref.Name)
		switch {
		case err == nil:
			found = append(found, m)
		case fail.Is(err, fail.NoSuchMachine):
		default:
			// A machine that is there but stopped is worth more to the user than 'no such machine'.
			failed = errors.Join(failed, err)
		}
	}
	switch {
	case !asked:
		return nil, fail.New(fail.InvalidArgument, "the kinds are "+strings.Join(g.kinds(), ", "),
			"no kind of machine is called %q", ref.Kind)
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, ambiguous(ref, found)
	case failed != nil:
		return nil, failed
	}
	return nil, fail.New(fail.NoSuchMachine, g.hint(ctx, ref), "no machine is called %q", ref)
}

// List returns the running machines of every kind, sorted by kind and name, and the errors of the
// resolvers that failed.
func (g Registry) List(ctx context.Context) ([]Info, error) {
	var all []Info
	var failed error
	for _, r := range g {
		list, err := r.List(ctx)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("listing %s machines: %w", r.Kind(), err))
		}
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b Info) int {
		return strings.Compare(a.Kind+":"+a.Name, b.Kind+":"+b.Name)
	})
	return all, failed
}

func (g Registry) kinds() []string {
	var kinds []string
	for _, r := range g {
		kinds = append(kinds, r.Kind())
	}
	return kinds
}

func ambiguous(ref Ref, found []*Machine) error {
	var refs []string
	for _, m := range found {
		refs = append(refs, m.Ref())
		_ = m.Close() // only a pidfd: nothing to do about an error
	}
	return fail.New(fail.AmbiguousMachine, "say which: "+strings.Join(refs, " or "),
		"more than one machine is called %q", ref)
}

// hint names the machines that come nearest to what was asked for.
func (g Registry) hint(ctx context.Context, ref Ref) string {
	list, _ := g.List(ctx) // what failed is no help here
	var names []string
	for _, m := range list {
		if ref.Kind == "" || ref.Kind == m.Kind {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names) // two kinds may know the same name
	if len(names) == 0 {
		return "no machine is running; see machinectl list"
	}
	near := nearest(ref.Name, names)
	if len(near) > 0 {
		return "did you mean " + strings.Join(near, " or ") + "?"
	}
	const most = 8
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return "running: " + strings.Join(names, ", ")
}

// nearest returns the names within a third of s's length in edits, nearest first, at most three.
func nearest(s string, names []string) []string {
	type scored struct {
		name  string
		edits int
	}
	var near []scored
	for _, n := range names {
		if d := edits(s, n); d <= max(1, len(s)/3) || strings.HasPrefix(n, s) {
			near = append(near, scored{n, d})
		}
	}
	slices.SortStableFunc(near, func(a, b scored) int { return a.edits - b.edits })
	var out []string
	for _, n := range near[:min(3, len(near))] {
		out = append(out, n.name)
	}
	return out
}

// edits is the number of bytes to insert, delete, change, or swap with the next, to make a into b (the
// optimal string alignment distance).
func edits(a, b string) int {
	var before []int // the row before the last
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := last[j]
			if a[i] != b[j] {
				cost = 1 + min(last[j], row[j], last[j+1])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cost = min(cost, 1+before[j-1])
			}
			row[j+1] = cost
		}
		before, last = last, row
	}
	return last[len(b)]
}
