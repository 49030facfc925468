package lxc

import (
	"context"
	"fmt"
	"sync"
)

// calls bounds the calls into liblxc.
type calls struct {
	slots chan struct{}

	mu   sync.Mutex
	busy map[string]chan struct{} // for each container that is asked, what is closed when it has answered
}

func newCalls(most int) *calls {
	return &calls{slots: make(chan struct{}, most), busy: map[string]chan struct{}{}}
}

// call calls f in a goroutine of its own, and no other with the same key meanwhile. If f takes too long it
// is left behind, keeps its key busy, and what it returns in the end goes to drop.
func call[T any](ctx context.Context, c *calls, key string, f func() T, drop func(T)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	done, err := c.begin(ctx, key)
	if err != nil {
		return none, err
	}
	result, left := make(chan T), make(chan struct{})
	defer close(left)
	go func() {
		value := f()
		c.end(key, done)
		select {
		case result <- value:
		case <-left:
			drop(value)
		}
	}()
	select {
	case value := <-result:
		return value, nil
	case <-ctx.Done():
		return none, fmt.Errorf("no answer: %w", ctx.Err())
	}
}

// begin waits until nobody else asks the container, and then for one of the slots.
func (c *calls) begin(ctx context.Context, key string) (chan struct{}, error) {
	for {
		c.mu.Lock()
		before, busy := c.busy[key]
		if !busy {
			break
		}
		c.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, fmt.Errorf("no answer to an earlier question: %w", ctx.Err())
		}
	}
	done := make(chan struct{})
	c.busy[key] = done
	c.mu.Unlock()
	select {
	case c.slots <- struct{}{}:
		return done, nil
	case <-ctx.Done():
		c.leave(key, done)
		return nil, fmt.Errorf("too many containers do not answer: %w", ctx.Err())
	}
}

func (c *calls) end(key string, done chan struct{}) {
	<-c.slots
	c.leave(key, done)
}

func (c *calls) leave(key string, done chan struct{}) {
	c.mu.Lock()
	delete(c.busy, key)
	c.mu.Unlock()
	close(done)
}
