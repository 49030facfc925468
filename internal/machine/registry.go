package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Registry asks a set of resolvers.
type Registry []Resolver

// Resolve finds the running machine that s names. The caller closes it. See [Registry.Find].
func (g Registry) Resolve(ctx context.Context, s string) (*Machine, error) {
	m, _, err := g.Find(ctx, s)
	return m, err
}

// Find finds the running machine that s names, and tells which resolvers could not say whether they know
// it, machine found or not. The caller closes the machine.
//
// A bare name is asked of every resolver that is not [TypedOnly], all at once, and none is waited for
// longer than two seconds, or half a second once another has found a machine. Two machines of the name
// are fail.AmbiguousMachine. The start of an id is as good as a name to some resolvers; without a kind it has
// to be as long as an id is when it is shown, for "deb" and "db" are names, and ids may begin with them.
func (g Registry) Find(ctx context.Context, s string) (*Machine, []*Failure, error) {
	ref, err := ParseRef(s)
	if err != nil {
		return nil, nil, err
	}
	asked, wait := g.meant(ref)
	if len(asked) == 0 {
		return nil, nil, fail.New(fail.InvalidArgument, "the kinds are "+strings.Join(g.kinds(), ", "),
			"no kind of machine is called %q", ref.Kind)
	}
	answers := askAll(ctx, asked, wait,
		func(ctx context.Context, r Resolver) (*Machine, error) { return r.Resolve(ctx, ref.Name) },
		func(m *Machine) { _ = m.Close() })

	var found []*Machine
	var told []error // about a machine of this name that cannot be had
	var failed []*Failure
	rest := slices.Clone(g) // those that can be asked for a hint
	for i, a := range answers {
		switch {
		case a.err == nil && ref.means(a.value) && !isIn(found, a.value):
			found = append(found, a.value)
		case a.err == nil:
			_ = a.value.Close()
		case isAnswer(a.err):
			told = append(told, a.err)
		case !fail.Is(a.err, fail.NoSuchMachine):
			failed = append(failed, &Failure{asked[i].Kind(), a.err})
			rest = slices.DeleteFunc(rest, func(r Resolver) bool { return r.Kind() == asked[i].Kind() })
		}
	}
	switch {
	case len(found) == 1:
		return found[0], failed, nil
	case len(found) > 1:
		return nil, failed, ambiguous(ref, found)
	case ctx.Err() != nil:
		return nil, failed, fmt.Errorf("looking for the machine %q: %w", ref, ctx.Err())
	case len(told) > 0:
		return nil, failed, together(told)
	case len(failed) == 1 && len(asked) == 1:
		return nil, failed, failed[0].asError(ref)
	}
	return nil, failed, noSuchMachine(ref, failed, rest.hint(ctx, ref, answers[0].err))
}

// isIn reports whether a machine was found already, by who knows it by another name: two pidfds that are held
// have the same number only if they are of the same process.
func isIn(found []*Machine, m *Machine) bool {
	return slices.ContainsFunc(found, func(f *Machine) bool { return f.Leader.PID == m.Leader.PID })
}

// meant returns the resolvers that a reference is for, and how long they have to answer.
func (g Registry) meant(ref Ref) ([]Resolver, patience) {
	var asked []Resolver
	for _, r := range g {
		_, typedOnly := r.(TypedOnly)
		if ref.Kind == r.Kind() || ref.Kind == "" && !typedOnly {
			asked = append(asked, r)
		}
	}
	if ref.Kind != "" {
		return asked, patience{each: typedTimeout, second: typedTimeout}
	}
	return asked, patience{each: bareTimeout, second: secondTimeout}
}

// isAnswer reports whether an error says something about the machine that was asked for, and not only
// that the resolver failed. A machine that is there but stopped is worth more to a user than 'no such
// machine'.
func isAnswer(err error) bool {
	return slices.ContainsFunc([]fail.Code{
		fail.NotRunning, fail.NotAContainer, fail.AmbiguousMachine, fail.AccessDenied, fail.InvalidArgument,
	}, func(c fail.Code) bool { return fail.Is(err, c) })
}

// together makes one failure of several.
func together(told []error) error {
	if len(told) == 1 {
		return told[0]
	}
	var messages, hints []string
	for _, err := range told {
		f := fail.From(err)
		messages = append(messages, f.Message)
		if f.Hint != "" && !slices.Contains(hints, f.Hint) {
			hints = append(hints, f.Hint)
		}
	}
	return fail.New(fail.From(told[0]).Code, strings.Join(hints, "; or "), "%s", strings.Join(messages, ", and "))
}

// asError is the failure of the only resolver that was asked.
func (f *Failure) asError(ref Ref) error {
	if errors.As(f.Err, new(errSilent)) {
		return fail.New(fail.Internal, "", "cannot find the machine %q: %w", ref, f)
	}
	return f.Err
}

func noSuchMachine(ref Ref, failed []*Failure, hint string) error {
	var reasons string
	if len(failed) > 0 {
		var list []string
		for _, f := range failed {
			list = append(list, f.Error())
		}
		reasons = " (" + strings.Join(list, "; ") + ")"
	}
	return fail.New(fail.NoSuchMachine, hint, "no machine is called %q%s", ref, reasons)
}

// List returns the running machines of every kind, sorted by kind and name, and with an error what could
// be had: the error has a [Failure] for each resolver that did not tell, or not all.
func (g Registry) List(ctx context.Context) ([]Info, error) {
	answers := askAll(ctx, g, patience{each: bareTimeout, second: bareTimeout},
		func(ctx context.Context, r Resolver) (listed, error) {
			list, err := r.List(ctx)
			return listed{list, err}, nil
		}, func(listed) {})
	var all []Info
	var failed []error
	for i, a := range answers {
		if err := errors.Join(a.err, a.value.err); err != nil {
			failed = append(failed, &Failure{g[i].Kind(), err})
		}
		all = append(all, a.value.list...)
	}
	slices.SortFunc(all, func(a, b Info) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	return all, errors.Join(failed...)
}

// listed is what a resolver listed, and why it is not all.
type listed struct {
	list []Info
	err  error
}

// typedOnly reports whether a machine needs its kind to be typed.
func (g Registry) typedOnly(ref string) bool {
	kind, _, _ := strings.Cut(ref, ":")
	return slices.ContainsFunc(g, func(r Resolver) bool {
		_, is := r.(TypedOnly)
		return is && r.Kind() == kind
	})
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

// hint names the machines that come nearest to what was asked for. A resolver's own hint is better than
// a list of names that are not near.
func (g Registry) hint(ctx context.Context, ref Ref, own error) string {
	list, _ := g.List(ctx) // what failed is no help here
	typed := map[string][]string{}
	var names []string
	for _, m := range list {
		if ref.Kind == "" || ref.Kind == m.Kind {
			typed[m.Name] = append(typed[m.Name], m.Kind+":"+m.Name)
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names) // two kinds may know the same name
	if near := Nearest(ref.Name, names); len(near) > 0 {
		var say []string
		for _, name := range near {
			if len(typed[name]) == 1 && !g.typedOnly(typed[name][0]) {
				say = append(say, name)
			} else {
				say = append(say, typed[name]...)
			}
		}
		return "did you mean " + strings.Join(say, " or ") + "?"
	}
	switch f := fail.From(own); {
	case ref.Kind != "" && f != nil && f.Hint != "":
		return f.Hint
	case len(names) == 0:
		return "no machine is running; a service is unit:NAME, a process pid:NUMBER"
	}
	const most = 8
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return "running: " + strings.Join(names, ", ")
}

// Nearest returns the names that start with s or are within a third of its length in edits, nearest first,
// at most three.
func Nearest(s string, names []string) []string {
	type scored struct {
		name  string
		edits int
	}
	var near []scored
	for _, n := range names {
		d := edits(s, n)
		if strings.HasPrefix(n, s) {
			d = 0 // "web" is more likely to be the start of "web@alice" than a slip for "deb"
		}
		if d <= max(1, len(s)/3) {
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
