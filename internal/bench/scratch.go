package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	scratchDir  = dir + "/scratch"
	scratchSize = 6 << 30 // a sparse file
)

// freshScratch mounts an ext4 of its own for the scratch directories, in place of the one before. Where files were removed, ext4
// passes over their inodes for minutes, one by one (recently_deleted), and a program that makes files takes ten times as long: what
// one setting removed would be on the next one's account.
//
// Only sessions that start later have it.
func freshScratch() error {
	if err := removeScratch(); err != nil {
		return err
	}
	if err := loopNodes(); err != nil {
		return err
	}
	image := filepath.Join(dir, "scratch.img")
	defer os.Remove(image) // the mount keeps it
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(scratchSize), f.Close(), os.MkdirAll(scratchDir, 0o755)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop,noinit_itable", image, scratchDir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// removeScratch unmounts it. A session that has just ended may hold it a little longer, and then the kernel lets go of it by itself.
func removeScratch() error {
	for exec.Command("mountpoint", "--quiet", scratchDir).Run() == nil {
		if out, err := exec.Command("umount", "--lazy", scratchDir).CombinedOutput(); err != nil {
			return fmt.Errorf("umount %s: %w\n%s", scratchDir, err, out)
		}
	}
	return nil
}

// loopNodes makes device nodes for loop devices, which a container has not.
func loopNodes() error {
	const major, nodes = 7, 8
	for i := range nodes {
		err := unix.Mknod(fmt.Sprintf("/dev/loop%d", i), unix.S_IFBLK|0o600, int(unix.Mkdev(major, uint32(i))))
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("make /dev/loop%d: %w", i, err)
		}
	}
	return nil
}
