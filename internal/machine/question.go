package machine

import (
	"context"
	"sync"
)

// question is what a registry asks its resolvers at once. What one of them has to look for on the whole host, and
// others, too, is looked for once.
type question struct {
	mu    sync.Mutex
	known map[any]*finding
}

type finding struct {
	once  sync.Once
	value any
	err   error
}

type questionKey struct{}

// asked returns a context for the resolvers that are asked one question.
func asked(ctx context.Context) context.Context {
	return context.WithValue(ctx, questionKey{}, &question{known: make(map[any]*finding)})
}

// Shared returns what look finds, or has found for another resolver that is asked the same question. The key says what is
// looked for: a type of its own, as for [context.WithValue]. What comes of it is nobody's to change.
func Shared[T any](ctx context.Context, key any, look func() (T, error)) (T, error) {
	q, ok := ctx.Value(questionKey{}).(*question)
	if !ok {
		return look()
	}
	q.mu.Lock()
	f := q.known[key]
	if f == nil {
		f = &finding{}
		q.known[key] = f
	}
	q.mu.Unlock()
	f.once.Do(func() { f.value, f.err = look() })
	return f.value.(T), f.err
}
