// Testhost boots, enters and ends the system that the integration tests run in. See the package
// documentation of internal/testhost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/testhost"
)

const usage = `usage: testhost VERB

  up                    boot the test host, with its machines, for the source tree in the current directory
  down                  end it and remove all that there is of it
  status                say whether it runs
  shell [COMMAND…]      a shell in it, or one command
  run PROGRAM [ARG…]    copy a program in and run it, for "go test -exec"
  install               make install into it, and have systemd and D-Bus read their files again
  vm [--selinux] [--newer-kernel] [--deb=FILE] TEST…
                        boot a virtual machine with Debian's kernel, run tests in it and switch it off; a TEST is the
                        directory of a package, or DIRECTORY=PATTERN for some of its tests. With SELinux in the place
                        of AppArmor, with the kernel of Debian's backports, or with a Debian package of the product,
                        which is installed there, tested before and after a reboot, and purged

TESTHOST names one of several test hosts, TESTHOST_MIRROR the Debian mirror to build it from.
`

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "testhost: %v\n", err)
		os.Exit(125)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return 2, nil
	}
	host, err := testhost.Open()
	if err != nil {
		return 0, err
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "run":
		if len(args) == 0 {
			return 0, errors.New("run: no program\nhint: testhost run PROGRAM [ARG…]")
		}
		return host.Run(context.Background(), args[0], args[1:])
	case "shell":
		return host.Shell(context.Background(), isTerminal(os.Stdin) && isTerminal(os.Stdout), args)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch verb {
	case "up":
		repo, err := sourceTree()
		if err != nil {
			return 0, err
		}
		return 0, host.Up(ctx, repo)
	case "down":
		return 0, host.Down(ctx)
	case "install":
		return 0, host.Install(ctx)
	case "vm":
		repo, err := sourceTree()
		if err != nil {
			return 0, err
		}
		var options testhost.VMOptions
		flags := flag.NewFlagSet("vm", flag.ContinueOnError)
		flags.BoolVar(&options.SELinux, "selinux", false, "")
		flags.BoolVar(&options.NewerKernel, "newer-kernel", false, "")
		flags.StringVar(&options.Package, "deb", "", "")
		if err := flags.Parse(args); err != nil {
			return 2, nil
		}
		return host.VM(ctx, repo, options, flags.Args())
	case "status":
		text, running := host.Status(ctx)
		fmt.Println(text)
		if !running {
			return 3, nil // as systemctl status
		}
		return 0, nil
	}
	fmt.Fprint(os.Stderr, usage)
	return 2, nil
}

// sourceTree is the directory of the module's go.mod.
func sourceTree() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if filepath.Base(file) != "go.mod" {
		return "", errors.New("not in a Go module\nhint: run it in the source tree")
	}
	return filepath.Dir(file), nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
