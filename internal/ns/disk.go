package ns

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountDisk makes a detached, read-only mount of the file system on a block device. Options are NAME or NAME=VALUE. The
// mount is in no mount namespace: nobody sees it, and it goes with its last descriptor. Its root directory is what is
// returned; the caller owns it. The device can be closed. An error of the kernel's says what its parser found wrong.
//
// Requires CAP_SYS_ADMIN and Linux 5.2. ENODEV: the kernel does not have this type of file system.
func MountDisk(fstype string, device *os.File, options ...string) (*os.File, error) {
	// By descriptor: there may be another device at its path by now.
	all := []option{{"source", fmt.Sprintf("/proc/self/fd/%d", device.Fd())}, {"ro", ""}}
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		all = append(all, option{name, value})
	}
	return detached(fstype, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID, all...)
}

// OpenBlockDevice opens a block device for reading by a node of its own, in a file system in memory that nobody sees: for
// hosts where no udev makes one.
func OpenBlockDevice(major, minor uint32) (*os.File, error) {
	memory, err := detached("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, option{"source", "tmpfs"}, option{"mode", "700"})
	if err != nil {
		return nil, err
	}
	defer memory.Close() // the open device keeps what it needs of it
	if err := unix.Mknodat(int(memory.Fd()), "device", unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return nil, fmt.Errorf("making a node for device %d:%d: %w", major, minor, err)
	}
	fd, err := unix.Openat(int(memory.Fd()), "device", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening device %d:%d: %w", major, minor, err)
	}
	return os.NewFile(uintptr(fd), "device"), nil
}
