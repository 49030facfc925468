package ns

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// option is a mount option for [detached]: a flag where the value is empty.
type option struct{ key, value string }

// detached makes a file system instance and a mount of it that has no place yet. It requires Linux 5.2
// and CAP_SYS_ADMIN. The caller owns the descriptor, which is close-on-exec; the mount goes with it
// unless it was given a place.
func detached(fstype string, attributes int, options ...option) (*os.File, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %q: %w", fstype, err)
	}
	defer unix.Close(ctx)
	for _, o := range options {
		if o.value == "" {
			err = unix.FsconfigSetFlag(ctx, o.key)
		} else {
			err = unix.FsconfigSetString(ctx, o.key, o.value)
		}
		if err != nil {
			return nil, fmt.Errorf("fsconfig %q of %q to %q: %w%s", o.key, fstype, o.value, err, complaints(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("creating %q: %w%s", fstype, err, complaints(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attributes)
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

// MountFUSE opens /dev/fuse and makes a detached mount that is served on it. The caller owns both
// descriptors. A kernel or a host without FUSE is fail.NotSupported.
//
// The superblock belongs to the host's user namespace, whatever the machine's: it may hand files to
// every user (allow_other), the kernel checks permissions by the attributes served (default_permissions),
// and devices in the tree cannot be opened. Unless writable, the kernel refuses changes by itself; unless suid, it
// ignores set-id bits and file capabilities. With a label, all files of the tree have it for SELinux.
func MountFUSE(writable, suid bool, label string) (device, mount *os.File, err error) {
	device, err = os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, fail.New(fail.NotSupported, "load it with modprobe fuse, or give this container the device",
			"FUSE is not available here: %w", err)
	}
	attributes := unix.MOUNT_ATTR_NODEV
	if !writable {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	if !suid {
		attributes |= unix.MOUNT_ATTR_NOSUID
	}
	options := []option{
		{"source", "cntr"},
		{"subtype", "cntr"},
		{"fd", strconv.Itoa(int(device.Fd()))},
		{"rootmode", "40000"},
		{"user_id", "0"},
		{"group_id", "0"},
		{"allow_other", ""},
		{"default_permissions", ""},
	}
	if !writable {
		// The superblock as well: who opens a file for writing is refused before it counts as a writer, which would keep
		// others from executing the file meanwhile (ETXTBSY).
		options = append(options, option{"ro", ""})
	}
	mount, err = detached("fuse", attributes, labelled(label, options...)...)
	if err != nil {
		_ = device.Close() // nothing was served on it
		return nil, nil, fail.New(fail.NotSupported, "is /dev/fuse the FUSE device?", "mounting FUSE: %w", err)
	}
	return device, mount, nil
}

// labelled adds the option that gives all files of a file system the same label for SELinux, if there is a label.
func labelled(label string, options ...option) []option {
	if label == "" {
		return options
	}
	return append(options, option{"context", label})
}

// MountTerminals makes a detached devpts of its own, so that the terminals of a session are neither the
// host's nor the machine's (CVE-2025-52565 and its kin trusted the machine's). The ids are the host's. With a label, all files have it for SELinux.
func MountTerminals(ttyGID uint32, label string) (*os.File, error) {
	return detached("devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, labelled(label,
		option{"source", "devpts"},
		option{"gid", strconv.FormatUint(uint64(ttyGID), 10)},
		option{"mode", "620"},
		option{"ptmxmode", "666"})...)
}

// MountMemory makes a detached, empty tmpfs with the given mode for its root, "1777", and owner, in the host's terms.
// With a label, all files have it for SELinux.
func MountMemory(mode string, uid uint32, label string) (*os.File, error) {
	return detached("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, labelled(label, option{"source", "tmpfs"}, option{"mode", mode},
		option{"uid", strconv.FormatUint(uint64(uid), 10)})...)
}

// MountDevices makes a detached /dev with the devices that a container has (OCI runtime
// specification, 'Default Devices'), for a machine that has none. With a label, all have it for SELinux.
func MountDevices(label string) (_ *os.File, err error) {
	dev, err := detached("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC,
		labelled(label, option{"source", "tmpfs"}, option{"mode", "755"})...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = dev.Close()
		}
	}()
	at := int(dev.Fd())
	for _, d := range []struct {
		name  string
		minor uint32
	}{{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}} {
		if err := device(at, d.name, 1, d.minor); err != nil {
			return nil, err
		}
	}
	if err := device(at, "tty", 5, 0); err != nil {
		return nil, err
	}
	for _, l := range [][2]string{
		{"ptmx", "pts/ptmx"},
		{"fd", "/proc/self/fd"},
		{"stdin", "/proc/self/fd/0"},
		{"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"},
	} {
		if err := unix.Symlinkat(l[1], at, l[0]); err != nil {
			return nil, fmt.Errorf("making /dev/%s: %w", l[0], err)
		}
	}
	if err := unix.Mkdirat(at, "pts", 0o755); err != nil {
		return nil, fmt.Errorf("making /dev/pts: %w", err)
	}
	if err := unix.Mkdirat(at, "shm", 0o1777); err != nil {
		return nil, fmt.Errorf("making /dev/shm: %w", err)
	}
	return dev, unix.Fchmodat(at, "shm", 0o1777, 0) // whatever the umask
}

func device(at int, name string, major, minor uint32) error {
	if err := unix.Mknodat(at, name, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return fmt.Errorf("making /dev/%s: %w", name, err)
	}
	return unix.Fchmodat(at, name, 0o666, 0) // whatever the umask
}
