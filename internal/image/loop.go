package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

const (
	loopMajor = 7
	// loopFlags are of all our devices: they cannot be written to, and clear themselves when nobody has them open.
	loopFlags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	// loopAttempts bounds how often a device that was free is taken by somebody else.
	loopAttempts = 64
)

// attachLoop returns a loop device on a part of a file, for reading; the caller owns it (loop(4); LOOP_CONFIGURE is of Linux
// 5.8). If there is one already, it is shared: then the kernel shares what is mounted from it, and all that it has in
// memory of that. The path is for people to see.
func attachLoop(file *os.File, path string, part span) (*os.File, error) {
	control, err := lockLoops()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	if d := findLoop(file, part); d != nil {
		return d, nil
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Offset, config.Info.Sizelimit, config.Info.Flags = part.offset, part.size, loopFlags
	copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a free loop device: %w", err)
		}
		d, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(d.Fd()), &config)
		if err == nil {
			return d, nil
		}
		_ = d.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("setting up loop device %d: %w", n, err)
		}
	}
	return nil, errors.New("setting up a loop device: each was taken by somebody else")
}

// lockLoops opens the control device, and keeps others from setting up a device until it is closed. As systemd does: two that do at once do not
// take each other's, and the second finds that of the first.
func lockLoops() (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fail.New(fail.NotSupported, "load it with modprobe loop", "there are no loop devices here: %w", err)
	}
	err = unix.Flock(int(control.Fd()), unix.LOCK_EX)
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(control.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		_ = control.Close()
		return nil, fmt.Errorf("locking %s: %w", control.Name(), err)
	}
	return control, nil
}

// findLoop finds a device of ours that there is already.
func findLoop(file *os.File, part span) *os.File {
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil {
		return nil
	}
	list, _ := filepath.Glob("/sys/block/loop*/loop") // of those that are set up; the pattern is one
	for _, dir := range list {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
		if err != nil {
			continue
		}
		d, err := openLoop(n)
		if err != nil {
			continue
		}
		// Open, it does not clear itself any more, so what it says now stays true.
		info, err := unix.IoctlLoopGetStatus64(int(d.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino && info.Offset == part.offset &&
			info.Sizelimit == part.size && info.Flags&loopFlags == loopFlags {
			return d
		}
		_ = d.Close()
	}
	return nil
}

// openLoop opens loop device n.
func openLoop(n int) (*os.File, error) {
	d, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
	if err == nil {
		var st unix.Stat_t
		if unix.Fstat(int(d.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == unix.Mkdev(loopMajor, uint32(n)) {
			return d, nil
		}
		_ = d.Close()
	}
	return ns.OpenBlockDevice(loopMajor, uint32(n))
}
