package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/testhost"
)

// packages are what the workloads need and the test host lacks.
var packages = []string{"cntr", "git", "sqlite3", "gcc", "libc6-dev", "make"}

// InstallPackages puts Debian packages into the running test host. That has no network of its own, so this
// computer's apt gets them, from where the test host itself came from. They are kept in a cache.
func InstallPackages(ctx context.Context, host *testhost.Host, log func(string, ...any)) error {
	out, _ := exec.CommandContext(ctx, "dpkg-query", "--admindir="+filepath.Join(host.Root(), "var/lib/dpkg"),
		"--show", "--showformat=${Package} ${db:Status-Status}\n").Output()
	missing := false
	for _, name := range packages {
		missing = missing || !strings.Contains("\n"+string(out), "\n"+name+" installed\n")
	}
	if !missing {
		return nil
	}
	log("installing %s into the test host", strings.Join(packages, ", "))
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = "/var/cache"
	}
	cache = filepath.Join(cache, "cntr-attach-bench")
	archives := filepath.Join(cache, "archives")
	for _, d := range []string{"archives/partial", "lists/partial"} {
		if err := os.MkdirAll(filepath.Join(cache, d), 0o755); err != nil {
			return err
		}
	}
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{
			"--quiet", "--yes", "--no-install-recommends", "-o", "Dir=" + host.Root(),
			"-o", "Dir::State::Lists=" + filepath.Join(cache, "lists"), "-o", "Dir::Cache=" + cache,
			"-o", "Dir::Cache::Archives=" + archives, "-o", "Dir::Etc::TrustedParts=/usr/share/keyrings",
			// The cache is root's alone.
			"-o", "APT::Sandbox::User=root",
		}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
		}
		return nil
	}
	if err := apt("update"); err != nil {
		log("going on with the lists that are there: %v", err)
	}
	// What is not the newest any more, so that all that is left can be installed.
	if err := apt("autoclean"); err != nil {
		return err
	}
	if err := apt(append([]string{"install", "--download-only"}, packages...)...); err != nil {
		return err
	}
	return installArchives(ctx, host, archives)
}

// installArchives installs all the packages in a directory.
func installArchives(ctx context.Context, host *testhost.Host, archives string) error {
	const inside = "/var/tmp/bench-packages"
	outside := filepath.Join(host.Root(), inside)
	defer os.RemoveAll(outside)
	if out, err := exec.CommandContext(ctx, "cp", "--recursive", archives, outside).CombinedOutput(); err != nil {
		return fmt.Errorf("copy packages into the test host: %w\n%s", err, out)
	}
	code, err := host.Shell(ctx, false, []string{"sh", "-c", `
		cd ` + inside + ` && DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io --install *.deb >log 2>&1 || {
			tail -n 30 log >&2; exit 1; }`})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("dpkg in the test host: exit status %d", code)
	}
	return nil
}
