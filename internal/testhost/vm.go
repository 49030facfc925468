package testhost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A vmTest is a package whose tests run in the virtual machine.
type vmTest struct {
	Package string // "./internal/shield"
	Run     string // which of them, as -test.run takes it
}

// vmLimit bounds a run of the virtual machine, from the power button on, with a reboot if there is one.
const vmLimit = 15 * time.Minute

// VMOptions say what virtual machine it is.
type VMOptions struct {
	SELinux     bool // with SELinux in the place of AppArmor; the policy is Debian's
	NewerKernel bool // with the kernel of Debian's backports
	// Package is a .deb of the product: it is installed in the place of what make install installs, tests run before and after
	// a reboot, and it is purged. Empty for none.
	Package string
}

// vmDone is the line that ends the tests' output, and has their exit status behind it.
const vmDone = "testhost-vm: exit status "

// vmReboot is the line before a reboot, after which the tests go on.
const vmReboot = "testhost-vm: reboot"

// VM boots a virtual machine with Debian's own kernel, with the product installed and the machines of a test host running,
// runs tests in it and switches it off. A test is "PACKAGE" or "PACKAGE=PATTERN". It returns the exit status of the tests,
// whose output goes to standard output.
//
// A container shares the kernel of whatever it runs on. This is for what that kernel, or the container, may not have: BPF
// programs on the kernel's functions, AppArmor, and all controllers of control groups. There need be no virtualisation: the
// processor is emulated where KVM is missing, some twenty times slower.
func (h *Host) VM(ctx context.Context, repo string, options VMOptions, args []string) (int, error) {
	var tests []vmTest
	for _, arg := range args {
		pkg, pattern, ok := strings.Cut(arg, "=")
		if !ok {
			pattern = "."
		}
		tests = append(tests, vmTest{"./" + filepath.Clean(pkg), pattern})
	}
	held, err := lock(ctx, filepath.Join(h.dir, "vm.lock"))
	if err != nil {
		return 0, err
	}
	defer held.Close()
	begin := time.Now()
	cached, err := build(ctx, vmRecipes, h.Log)
	if err != nil {
		return 0, err
	}
	built := time.Now()
	dir := filepath.Join(cacheDir(), "run", h.Name+".vm")
	if err := removeTree(dir); err != nil { // of a run that was killed
		return 0, err
	}
	defer func() { _ = removeTree(dir) }()
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "root.img")
	if err := layVM(ctx, cached, root, repo, options.Package, tests); err != nil {
		return 0, err
	}
	if options.SELinux {
		if err := labelTree(ctx, root); err != nil {
			return 0, err
		}
	}
	if err := makeImage(ctx, root, image); err != nil {
		return 0, err
	}
	made := time.Now()
	h.Log("the virtual machine's disk is made: trees in %.0f s, image in %.0f s", built.Sub(begin).Seconds(), made.Sub(built).Seconds())
	console := filepath.Join(h.dir, "vm-console.log")
	limited, cancel := context.WithTimeout(ctx, vmLimit)
	defer cancel()
	for {
		code, again, err := boot(limited, options, filepath.Join(cached, "host"), image, console)
		if limited.Err() != nil {
			err = fmt.Errorf("the virtual machine did not end within %v", vmLimit)
		}
		if err != nil {
			return 0, fmt.Errorf("%w\n--- the end of its console ---\n%s\n--- end of the console ---", err, lastLines(console, 200))
		}
		if !again {
			h.Log("the virtual machine ran for %.0f s", time.Since(made).Seconds())
			return code, nil
		}
	}
}

// boot boots the image with the kernel of a tree, prints what the tests print, and returns their exit status, or that they want a reboot.
func boot(ctx context.Context, options VMOptions, tree, image, console string) (code int, again bool, err error) {
	kernel, initrd, err := bootFiles(tree, options.NewerKernel)
	if err != nil {
		return 0, false, err
	}
	module := "apparmor=1 security=apparmor"
	if options.SELinux {
		module = "selinux=1 security=selinux"
	}
	// An emulated processor with cx16 makes QEMU 7.2's kernel crash in kmalloc.
	// There its clock is unstable, of which the kernel is told at once: when it finds out under load, it patches its code while
	// the other processor runs it, which QEMU's emulation does not always survive. Nor does it wait for the first ticks of its timer: on
	// a computer with much else to do they come too late, and it would give up.
	accelerator, clock := []string{"-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16"}, " tsc=unstable no_timer_check"
	if hasKVM(ctx) {
		accelerator, clock = []string{"-accel", "kvm", "-cpu", "host"}, ""
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(accelerator,
		"-machine", "q35", "-smp", "2", "-m", "2G", "-nodefaults", "-display", "none", "-no-reboot",
		"-drive", "file="+image+",format=raw,if=virtio,cache=unsafe",
		"-serial", "file:"+console, "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd,
		"-append", "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.show_status=1 "+module+clock)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGKILL) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, false, err
	}
	if err := cmd.Start(); err != nil {
		return 0, false, fmt.Errorf("start the virtual machine: %w\nhint: apt-get install qemu-system-x86", err)
	}
	code, again = readTests(out)
	if err := cmd.Wait(); err != nil {
		return 0, false, fmt.Errorf("the virtual machine: %w", err)
	}
	if code < 0 && !again {
		return 0, false, errors.New("the virtual machine ended before its tests did")
	}
	return code, again, nil
}

// hasKVM says whether a processor can be had from KVM. That there is /dev/kvm does not tell: in a virtual machine it may be there
// and fail. So one is made, and given up before it runs.
func hasKVM(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-machine", "q35", "-nodefaults",
		"-display", "none", "-S", "-monitor", "stdio")
	cmd.Stdin = strings.NewReader("quit\n")
	return cmd.Run() == nil
}

// readTests prints the tests' output, and returns the exit status in it, or -1, and whether there is to be a reboot.
func readTests(out io.Reader) (code int, again bool) {
	code = -1
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		line := strings.TrimRight(scanner.Text(), "\r")
		if status, ok := strings.CutPrefix(line, vmDone); ok {
			if n, err := strconv.Atoi(status); err == nil {
				code = n
			}
			continue
		}
		if line == vmReboot {
			again = true
		}
		fmt.Println(line)
	}
	return code, again
}
