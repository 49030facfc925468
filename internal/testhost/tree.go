package testhost

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// files are laid over the copy of the host's tree: files/etc/hosts becomes /etc/hosts.
//
//go:embed all:files
var files embed.FS

// masked are units that only cost time in a test, or need what a container has not.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
	"fstrim.timer", "lxc.service", "lxc-net.service", "systemd-modules-load.service", "systemd-firstboot.service",
	"systemd-pstore.service", "console-getty.service", "systemd-networkd.service", "systemd-networkd.socket",
}

// layTree copies the built trees from cached to root and makes them the test host's own.
func layTree(ctx context.Context, cached, root string) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o700); err != nil {
		return err
	}
	machines := filepath.Join(root, "var/lib/machines")
	for _, c := range []struct{ from, to string }{
		{"host", root},
		{"deb", filepath.Join(machines, "deb")},
		{"deb", filepath.Join(machines, "debu")},
	} {
		if err := copyTree(ctx, filepath.Join(cached, c.from), c.to); err != nil {
			return err
		}
	}
	for dir, name := range map[string]string{root: "testhost", filepath.Join(machines, "deb"): "deb", filepath.Join(machines, "debu"): "debu"} {
		if err := personalize(dir, name); err != nil {
			return err
		}
	}
	if err := layFiles(files, "files", root); err != nil {
		return err
	}
	for _, machine := range []string{"deb", "debu", "slim"} {
		unit := "systemd-nspawn@" + machine + ".service"
		if err := linkUnit(root, "/usr/lib/systemd/system/systemd-nspawn@.service", "machines.target.wants/"+unit); err != nil {
			return err
		}
	}
	return errors.Join(laySlim(ctx, root), layMusl(ctx, root), layTicker(ctx, root))
}

// copyTree copies with all that a file has, and without copying data where the file system can share it.
func copyTree(ctx context.Context, from, to string) error {
	cmd := exec.CommandContext(ctx, "cp", "--archive", "--reflink=auto", "--no-target-directory", from, to)
	// If this process is killed, the next one that removes the copy must not race with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s to %s: %w\n%s", from, to, err, out)
	}
	return nil
}

// layFiles writes the files below dir of tree to the same places below root.
func layFiles(tree fs.FS, dir, root string) error {
	return fs.WalkDir(tree, dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		to := filepath.Join(root, strings.TrimPrefix(path, dir))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(data, []byte("#!")) {
			mode = 0o755
		}
		return os.WriteFile(to, data, mode)
	})
}

// personalize makes a copied tree a system of its own, which boots as one that has booted before.
func personalize(root, hostname string) error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(root, "etc/hostname"), []byte(hostname+"\n"), 0o644),
		os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte(hex.EncodeToString(id)+"\n"), 0o444),
		// Newer than /usr: nothing is to be rebuilt (systemd-update-done.service(8)).
		os.WriteFile(filepath.Join(root, "etc/.updated"), nil, 0o644),
		os.WriteFile(filepath.Join(root, "var/.updated"), nil, 0o644),
		mask(root, masked),
	)
}

// mask keeps units from being started at all.
func mask(root string, units []string) error {
	for _, unit := range units {
		if err := linkUnit(root, "/dev/null", unit); err != nil {
			return err
		}
	}
	return nil
}

func linkUnit(root, target, name string) error {
	path := filepath.Join(root, "etc/systemd/system", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

// removeTree removes a tree. Should anything be mounted in it, it is unmounted first: what is mounted is
// somebody else's, and must not be removed with the tree.
func removeTree(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	// The last mounted first.
	for _, mount := range slices.Backward(mounts) {
		if err := unix.Unmount(mount, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
	}
	if mounts, err = mountsBelow(dir); err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted", dir, mounts[0])
	}
	return os.RemoveAll(dir)
}

// mountsBelow lists the mount points at and below a directory in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []string
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		m, err := parseMount(scanner.Text())
		if err != nil {
			return nil, err
		}
		if m.point == dir || strings.HasPrefix(m.point, dir+"/") {
			mounts = append(mounts, m.point)
		}
	}
	return mounts, scanner.Err()
}
