package testhost

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// cacheDir holds the built trees and the copies that run. It must not be on an overlay, see the package
// documentation.
func cacheDir() string {
	base := os.Getenv("XDG_CACHE_HOME")
	if base == "" {
		base = "/var/cache"
	}
	return filepath.Join(base, "cntr-attach-testhost")
}

// build makes the trees unless they are there, and returns the directory that has one for each recipe.
// They appear under their final name only when all of them are whole.
func build(ctx context.Context, recipes []recipe, say func(string, ...any)) (string, error) {
	cache := cacheDir()
	// Only root may look inside: the trees hold set-user-id programs.
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", fmt.Errorf("make the cache directory: %w", err)
	}
	done := filepath.Join(cache, key(recipes))
	// Without the lock first: others hold it while they build. What was just used is not removed.
	now := time.Now()
	if os.Chtimes(done, now, now) == nil {
		return done, nil
	}
	held, err := lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer held.Close()

	if os.Chtimes(done, now, now) == nil {
		return done, nil
	}
	if err := removeOld(cache); err != nil {
		return "", err
	}
	from, aptopts := mirror(ctx), aptOptions(ctx)
	say("building Debian %s from %s (once, about a minute)", suite, from)
	temp := done + ".new"
	if err := os.Mkdir(temp, 0o700); err != nil {
		return "", err
	}
	errs := make([]error, len(recipes))
	var wg sync.WaitGroup
	for i, r := range recipes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = mmdebstrap(ctx, r, aptopts, filepath.Join(temp, r.Name), from, held)
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return "", err
		}
	}
	return done, os.Rename(temp, done)
}

// mmdebstrap makes one tree. It holds the lock on the cache, too: after a failure, and if this process is killed, it removes what it has
// made, and only then may others remove and build.
func mmdebstrap(ctx context.Context, r recipe, aptopts []string, dir, from string, held *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Minute) // a minute or two, but for a computer with ten others at work
	defer cancel()
	args := append([]string{"--mode=root", "--format=directory", "--include=" + strings.Join(r.Packages, ",")}, aptopts...)
	args = append(args, r.Options...)
	sources := []string{from}
	if len(r.Backports) > 0 {
		sources = append(sources, "deb "+from+" "+suite+"-backports main")
		args = append(args, `--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --option=DPkg::Chroot-Directory="$1" `+
			`--target-release=`+suite+`-backports install `+strings.Join(r.Backports, " "))
	}
	args = append(append(args, suite, dir), sources...)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	// Its scripts are for Debian's own interpreters, which may not be the first in a developer's PATH.
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	cmd.ExtraFiles = []*os.File{held}
	// It cleans up after itself if it is asked to stop, also if this process is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap %s from %s: %w\n%s\nhint: TESTHOST_MIRROR names another Debian mirror",
			r.Name, from, err, tail(log.String(), 30))
	}
	return nil
}

// removeOld removes trees that nobody has used for a week, and what an interrupted build left. The caller
// holds the lock.
func removeOld(cache string) error {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || e.Name() == "run" {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !strings.HasSuffix(e.Name(), ".new") && time.Since(info.ModTime()) < 7*24*time.Hour {
			continue // of another source tree
		}
		if err := removeTree(filepath.Join(cache, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// tail returns the last n lines.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
