package lxc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

func nothing(int) {}

func TestCall(t *testing.T) {
	c := newCalls(1)
	for range 3 {
		got, err := call(t.Context(), c, "web", func() int { return 7 }, nothing)
		if got != 7 || err != nil {
			t.Errorf("%d, %v", got, err)
		}
	}
	if len(c.busy) != 0 || len(c.slots) != 0 {
		t.Errorf("left behind: %v, %d slots", c.busy, len(c.slots))
	}
}

func TestHangingCallIsLeftBehind(t *testing.T) {
	c := newCalls(2)
	hang, dropped := make(chan struct{}), make(chan int, 1)
	begin := time.Now()
	_, err := call(t.Context(), c, "web", func() int { <-hang; return 7 }, func(n int) { dropped <- n })
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > callTimeout+time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	// Another container is not concerned, and this one is not asked again.
	if _, err := call(t.Context(), c, "db", func() int { return 1 }, nothing); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = call(ctx, c, "web", func() int { t.Error("asked while a question is open"); return 0 }, nothing)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// Once it answers, the answer is dropped, and it can be asked again.
	close(hang)
	if n := <-dropped; n != 7 {
		t.Errorf("dropped %d", n)
	}
	if _, err := call(t.Context(), c, "web", func() int { return 1 }, nothing); err != nil {
		t.Error(err)
	}
}

func TestHangingCallsAreBounded(t *testing.T) {
	const most, asking = 3, 20
	c := newCalls(most)
	hang := make(chan struct{})
	var running atomic.Int32
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	results := make(chan error, asking)
	for i := range asking {
		go func() {
			_, err := call(ctx, c, fmt.Sprint(i), func() int { running.Add(1); <-hang; return 0 }, nothing)
			results <- err
		}()
	}
	for range asking {
		if err := <-results; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	if n := running.Load(); n != most {
		t.Errorf("%d calls at once, want %d", n, most)
	}
	close(hang)
	if _, err := call(t.Context(), c, "web", func() int { return 0 }, nothing); err != nil {
		t.Error(err)
	}
}
