package machine

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// looker looks for something on the whole host before it answers.
type looker struct {
	known
	looks *atomic.Int32
}

func (l looker) look(ctx context.Context) (int32, error) {
	type key struct{}
	return Shared(ctx, key{}, func() (int32, error) { return l.looks.Add(1), nil })
}

func (l looker) Resolve(ctx context.Context, name string) (*Machine, error) {
	if _, err := l.look(ctx); err != nil {
		return nil, err
	}
	return l.known.Resolve(ctx, name)
}

func TestSharedIsLookedForOnceForEachQuestion(t *testing.T) {
	var looks atomic.Int32
	a := looker{known{kind: "a", names: []string{"web"}}, &looks}
	b := looker{known{kind: "b", names: []string{"db"}}, &looks}
	registry := Registry{a, b}
	for question := range int32(3) {
		m, err := registry.Resolve(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		_ = m.Close()
		if n := looks.Load(); n != question+1 {
			t.Errorf("after %d questions it was looked for %d times", question+1, n)
		}
	}
	// Without a registry there is nobody to share with.
	for range 2 {
		if _, err := a.Resolve(t.Context(), "nobody"); !fail.Is(err, fail.NoSuchMachine) {
			t.Error(err)
		}
	}
	if n := looks.Load(); n != 5 {
		t.Errorf("looked for %d times, want 5", n)
	}
}
