package testhost

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// vmRecipes are the trees of the virtual machine, laid out as those of the test host are.
var vmRecipes = []recipe{vmRecipe, debRecipe}

// vmRecipe has what the tests of a virtual machine need, and Debian's kernel; engines are tested in the test host.
var vmRecipe = recipe{
	Name: "host",
	Packages: []string{
		"systemd", "systemd-sysv", "libpam-systemd", "systemd-container", "dbus", "dbus-bin", "polkitd",
		"lxc", "fuse3", "kmod", "iproute2", "util-linux", "e2fsprogs", "udev",
		"linux-image-cloud-amd64", "initramfs-tools", "zstd", "apparmor", "selinux-policy-default", "policycoreutils",
		"docker.io", "docker-cli", "bpftrace", "cryptsetup-bin", "fdisk", "openssl", "squashfs-tools",
		"bash", "bsdutils", "busybox-static", "curl", "gdb", "lsof", "procps", "psmisc", "python3", "strace", "tcpdump", "xxd",
	},
	Options: append(trimmed(),
		`--customize-hook=chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash alice`,
		`--customize-hook=sed --in-place s/^root:.*/root:100000:1000000000/ "$1/etc/subuid" "$1/etc/subgid"`,
		// A small initial RAM disk: what the emulated processor unpacks takes long.
		`--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/testhost" && `+
			`printf 'virtio_pci\nvirtio_blk\next4\n' >"$1/etc/initramfs-tools/modules"`,
		// Of AppArmor's profiles, which the emulated processor compiles at boot, only LXC's.
		`--customize-hook=cd "$1/etc/apparmor.d" && find . -maxdepth 1 -type f ! -name 'lxc*' -delete`,
		`--customize-hook=systemctl --root="$1" disable docker.service docker.socket containerd.service`,
	),
	Backports: []string{"linux-image-cloud-amd64"},
}

// vmUnit runs the tests when all else is up, and has them print where they are waited for.
const vmUnit = `[Unit]
Description=The tests of the virtual machine
After=multi-user.target
[Service]
Type=exec
ExecStart=/usr/lib/testhost/vm
WorkingDirectory=/root
Environment=HOME=/root LANG=C.UTF-8
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
`

// layVM makes the virtual machine's tree in root: that of the test host, with the product, or a package of it to be installed, and the tests.
func layVM(ctx context.Context, cached, root, repo, deb string, tests []vmTest) error {
	if err := layTree(ctx, cached, root); err != nil {
		return err
	}
	install := exec.CommandContext(ctx, "make", "--no-print-directory", "install", "DESTDIR="+root)
	if deb != "" {
		install = exec.CommandContext(ctx, "install", "-D", "-m", "0644", deb, filepath.Join(root, "var/lib/testhost/vm/package.deb"))
	}
	install.Dir = repo
	install.Stdout, install.Stderr = os.Stderr, os.Stderr
	if err := install.Run(); err != nil {
		return fmt.Errorf("install the product in %s: %w", root, err)
	}
	if err := mask(root, []string{"getty@tty1.service", "serial-getty@ttyS0.service", "systemd-timesyncd.service"}); err != nil {
		return err
	}
	// The machines' patience is that of a processor which is not emulated.
	const patient = "[Manager]\nDefaultTimeoutStartSec=infinity\nDefaultDeviceTimeoutSec=infinity\n"
	for path, text := range map[string]string{
		"etc/systemd/system.conf.d/testhost.conf":                       patient,
		"var/lib/machines/deb/etc/systemd/system.conf.d/testhost.conf":  patient,
		"var/lib/machines/debu/etc/systemd/system.conf.d/testhost.conf": patient,
		"etc/systemd/system/systemd-nspawn@.service.d/testhost.conf":    "[Service]\nTimeoutStartSec=infinity\n",
		"etc/systemd/system/testhost-vm.service":                        vmUnit,
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := linkUnit(root, "../testhost-vm.service", "multi-user.target.wants/testhost-vm.service"); err != nil {
		return err
	}
	return layTests(ctx, root, repo, tests)
}

// layTests copies the source tree to where it is here, compiles the tests, and lists them for the script: a line for each
// with the directory, the program and the pattern.
func layTests(ctx context.Context, root, repo string, tests []vmTest) error {
	const inside = "/var/lib/testhost/vm"
	if err := os.MkdirAll(filepath.Join(root, inside), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, repo), 0o755); err != nil {
		return err
	}
	source := exec.CommandContext(ctx, "sh", "-c", `git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$1"`,
		"sh", filepath.Join(root, repo))
	source.Dir = repo
	if out, err := source.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the source tree: %w\n%s", err, out)
	}
	var list strings.Builder
	programs := map[string]string{}
	for i, t := range tests {
		program, made := programs[t.Package]
		if !made {
			program = filepath.Join(inside, strconv.Itoa(i)+".test")
			compile := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "integration,vm", "-o", filepath.Join(root, program), t.Package)
			compile.Dir = repo
			if out, err := compile.CombinedOutput(); err != nil {
				return fmt.Errorf("compile the tests of %s: %w\n%s", t.Package, err, out)
			}
			programs[t.Package] = program
		}
		fmt.Fprintf(&list, "%s\t%s\t%s\n", filepath.Join(repo, t.Package), program, t.Run)
	}
	return os.WriteFile(filepath.Join(root, inside, "tests"), []byte(list.String()), 0o644)
}

// makeImage makes an ext4 image of a tree, with room for what the tests write. The file is sparse.
func makeImage(ctx context.Context, tree, image string) error {
	out, err := exec.CommandContext(ctx, "du", "--summarize", "--one-file-system", "--block-size=1M", tree).Output()
	if err != nil {
		return fmt.Errorf("measure %s: %w", tree, err)
	}
	size, _, _ := strings.Cut(string(out), "\t")
	used, err := strconv.Atoi(size)
	if err != nil {
		return fmt.Errorf("measure %s: %w", tree, err)
	}
	const room = 2048
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", tree, image, fmt.Sprintf("%dM", used*5/4+room))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, out)
	}
	return nil
}

// labelTree has the policy in a tree take on what the product adds to it, and gives the tree's files the labels that it says.
func labelTree(ctx context.Context, root string) error {
	for _, command := range [][]string{
		{"semodule", "--noreload", "--install=/usr/share/selinux/packages/cntr-attach.cil"},
		{"setfiles", "-F", "/etc/selinux/default/contexts/files/file_contexts", "/"},
	} {
		if out, err := exec.CommandContext(ctx, "chroot", append([]string{root}, command...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s in %s: %w\n%s", command[0], root, err, tail(string(out), 30))
		}
	}
	return nil
}

// bootFiles returns the tree's kernel and its initial RAM disk: of the two that it has, the release's or the newer one.
func bootFiles(tree string, newer bool) (kernel, initrd string, err error) {
	list, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return "", "", err
	}
	if len(list) != 2 {
		return "", "", fmt.Errorf("%s/boot has %d kernels, not two", tree, len(list))
	}
	version := func(path string) (major, minor int) {
		_, _ = fmt.Sscanf(filepath.Base(path), "vmlinuz-%d.%d", &major, &minor)
		return major, minor
	}
	slices.SortFunc(list, func(a, b string) int {
		a1, a2 := version(a)
		b1, b2 := version(b)
		return cmp.Or(cmp.Compare(a1, b1), cmp.Compare(a2, b2))
	})
	kernel = list[0]
	if newer {
		kernel = list[1]
	}
	return kernel, strings.Replace(kernel, "/boot/vmlinuz-", "/boot/initrd.img-", 1), nil
}

// lastLines reads the end of a file.
func lastLines(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	var lines []string
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		if lines = append(lines, scanner.Text()); len(lines) > n {
			lines = lines[1:]
		}
	}
	return strings.Join(lines, "\n")
}
