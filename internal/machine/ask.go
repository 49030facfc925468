package machine

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How long a registry waits.
const (
	// bareTimeout is what each resolver has to answer for a bare name, or to list its machines.
	bareTimeout = 2 * time.Second
	// typedTimeout is what the one resolver has that a typed name can only mean.
	typedTimeout = 10 * time.Second
	// secondTimeout is how long the others are waited for once one has found a machine: long enough
	// for whoever works to object that there are two of this name, and not noticed if nobody hangs.
	secondTimeout = 500 * time.Millisecond
)

// Failure says that a resolver could not tell whether it knows a machine, or which ones it knows.
type Failure struct {
	Kind string
	Err  error
}

// Error reads "lxc did not answer within 2 s" or "lxc: …".
func (f *Failure) Error() string {
	var silence errSilent
	if errors.As(f.Err, &silence) {
		return f.Kind + " " + silence.Error()
	}
	return f.Kind + ": " + f.Err.Error()
}

// Unwrap returns the reason.
func (f *Failure) Unwrap() error { return f.Err }

// errSilent is the reason of a resolver that did not answer in time.
type errSilent time.Duration

func (e errSilent) Error() string {
	return fmt.Sprintf("did not answer within %g s", time.Duration(e).Seconds())
}

func (e errSilent) Unwrap() error { return context.DeadlineExceeded }

// patience is how long answers are waited for.
type patience struct {
	each   time.Duration // at most
	second time.Duration // after the first that is no error; more than each for no such limit
}

// answer is what one resolver said.
type answer[T any] struct {
	value T
	err   error
}

// askAll asks all resolvers at once and returns what each said, in their order. It does not wait longer
// than it was told to, even for one that takes no notice of its context; what such a one says later is
// dropped. If ctx ends meanwhile, all that have not answered have failed with its error.
func askAll[T any](ctx context.Context, all []Resolver, wait patience,
	question func(context.Context, Resolver) (T, error), drop func(T),
) []answer[T] {
	asking, cancel := context.WithTimeout(asked(ctx), wait.each)
	defer cancel()
	type numbered struct {
		answer[T]
		number int
	}
	heard := make(chan numbered, len(all)) // with room for everybody: nobody hangs for want of a listener
	for i, r := range all {
		go func() {
			value, err := question(asking, r)
			heard <- numbered{answer[T]{value, err}, i}
		}()
	}

	answers := make([]answer[T], len(all))
	silent := make([]bool, len(all))
	for i := range silent {
		silent[i] = true
	}
	waited, missing := wait.each, len(all)
	for missing > 0 && asking.Err() == nil {
		select {
		case <-asking.Done():
		case a := <-heard:
			missing--
			if a.err != nil && asking.Err() != nil {
				break // it tells no more than that its time was up
			}
			answers[a.number], silent[a.number] = a.answer, false
			if a.err == nil && wait.second < waited {
				waited = wait.second
				defer time.AfterFunc(wait.second, cancel).Stop()
			}
		}
	}
	for i := range answers {
		switch {
		case silent[i] && ctx.Err() != nil:
			answers[i].err = ctx.Err()
		case silent[i]:
			answers[i].err = errSilent(waited)
		}
	}
	go func() {
		for range missing {
			if late := <-heard; late.err == nil {
				drop(late.value)
			}
		}
	}()
	return answers
}
