package ns

import (
	"bytes"
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
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %q: %w", fstype, err)
	}
	defer unix.Close(ctx)
	// By descriptor: there may be another device at its path by now.
	err = unix.FsconfigSetString(ctx, "source", fmt.Sprintf("/proc/self/fd/%d", device.Fd()))
	for _, o := range append([]string{"ro"}, options...) {
		if err != nil {
			break
		}
		if name, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(ctx, name, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, name)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, complaints(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, fmt.Errorf("fsmount %q: %w", fstype, err)
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

// complaints reads what the kernel says of a file system that cannot be made: lines that begin with "e ", "w " or "i "
// (fsopen(2) of Linux's documentation of the mount API).
func complaints(ctx int) string {
	var said []string
	for range 16 {
		var b [1024]byte
		n, err := unix.Read(ctx, b[:])
		if err != nil || n <= 0 {
			break
		}
		if text, ok := bytes.CutPrefix(b[:n], []byte("e ")); ok {
			said = append(said, strings.TrimSpace(string(text)))
		}
	}
	if len(said) == 0 {
		return ""
	}
	return " (" + strings.Join(said, "; ") + ")"
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
