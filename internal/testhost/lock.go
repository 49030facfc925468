package testhost

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lock waits for an exclusive lock on a file, which it makes if need be. The lock is held until the file that it returns is closed, here and
// in every process that has inherited it; the kernel closes it when a process ends, whatever happens.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return f, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for %s, which another run holds: %w", path, ctx.Err())
	}
}
