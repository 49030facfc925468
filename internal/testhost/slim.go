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

// musl is where the test host has the root file system of another libc.
const musl = "var/lib/testhost/musl"

// layMusl makes an image with musl as its libc: the program of the slim machine, and a shell that needs none.
func layMusl(ctx context.Context, root string) error {
	image := filepath.Join(root, musl)
	for _, dir := range []string{"bin", "lib", "etc"} {
		if err := os.MkdirAll(filepath.Join(image, dir), 0o755); err != nil {
			return err
		}
	}
	program := filepath.Join(image, "bin/slim")
	compile := exec.CommandContext(ctx, "musl-gcc", "-O0", "-Wall", "-o", program, filepath.Join(root, slimSourceDir, "slim.c"))
	if out, err := compile.CombinedOutput(); err != nil {
		return fmt.Errorf("compile for musl: %w\n%s\nhint: make setup installs musl-gcc", err, out)
	}
	// The C library is its own dynamic loader.
	out, err := exec.CommandContext(ctx, "readelf", "--program-headers", program).Output()
	if err != nil {
		return fmt.Errorf("the dynamic loader of %s: %w", program, err)
	}
	_, loader, found := strings.Cut(string(out), "interpreter: ")
	loader, _, closed := strings.Cut(loader, "]")
	if !found || !closed {
		return fmt.Errorf("%s has no dynamic loader", program)
	}
	for from, to := range map[string]string{loader: loader, filepath.Join(root, "usr/bin/busybox"): "bin/busybox"} {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(image, to), data, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"sh", "cat", "echo", "ls", "ps", "id"} {
		if err := os.Symlink("busybox", filepath.Join(image, "bin", name)); err != nil {
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
