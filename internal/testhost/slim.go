package testhost

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed machines/slim.c
var slimSource []byte

//go:embed machines/ticker.go
var tickerSource []byte

// layTicker makes a statically linked program in Go, with debugging information, for machines of tests.
func layTicker(ctx context.Context, root string) error {
	dir := filepath.Join(root, "usr/lib/testhost")
	source := filepath.Join(dir, "ticker.go")
	if err := os.WriteFile(source, tickerSource, 0o644); err != nil {
		return err
	}
	compile := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "ticker"), source)
	compile.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := compile.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the program in Go: %w\n%s", err, out)
	}
	return nil
}

// slimSourceDir is where the program's debugging information says that its source is. The test host has
// it there, the machine has not: a debugger brought from the host finds it.
const slimSourceDir = "/usr/src/slim"

// laySlim makes the slim machine: one program with debugging information, the libraries it is linked to,
// and the empty directories on which systemd-nspawn mounts.
func laySlim(ctx context.Context, root string) error {
	machine := filepath.Join(root, "var/lib/machines/slim")
	source := filepath.Join(root, slimSourceDir)
	program := filepath.Join(machine, "usr/bin/slim")
	for _, dir := range []string{
		source, filepath.Join(machine, "usr/bin"), filepath.Join(machine, "usr/lib"), filepath.Join(machine, "usr/lib64"),
		filepath.Join(machine, "proc"), filepath.Join(machine, "sys"), filepath.Join(machine, "dev"),
		filepath.Join(machine, "run"), filepath.Join(machine, "tmp"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// A merged /usr, as Debian has had since 12.
	for _, name := range []string{"lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(machine, name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(source, "slim.c"), slimSource, 0o644); err != nil {
		return err
	}
	compile := exec.CommandContext(ctx, "cc", "-g", "-O0", "-Wall", "-Werror",
		"-fdebug-prefix-map="+source+"="+slimSourceDir, "-o", program, filepath.Join(source, "slim.c"))
	compile.Dir = source
	if out, err := compile.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the slim machine's program: %w\n%s\nhint: make setup installs a C compiler", err, out)
	}
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return fmt.Errorf("list the libraries of %s: %w", program, err)
	}
	for _, lib := range parseLdd(string(out)) {
		to := filepath.Join(machine, lib)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		data, err := os.ReadFile(lib)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// parseLdd returns the paths in ldd's output, the dynamic loader's among them:
//
//	linux-vdso.so.1 (0x00007ffd…)
//	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f…)
func parseLdd(out string) []string {
	var paths []string
	for _, line := range strings.Split(out, "\n") {
		for _, field := range strings.Fields(line) {
			if strings.HasPrefix(field, "/") {
				paths = append(paths, field)
				break
			}
		}
	}
	return paths
}
