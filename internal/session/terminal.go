package session

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal in a devpts mount: the master for the client, the other side for the
// command, whose user is to own it. That side is opened through the master (TIOCGPTPEER, Linux 4.13),
// never by a name. The caller owns both.
func openTerminal(devpts *os.File, uid uint32, rows, columns uint16) (master, slave *os.File, err error) {
	fd, err := unix.Openat(int(devpts.Fd()), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	defer func() {
		if err != nil {
			closeAll(master, slave)
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fmt.Errorf("unlocking the terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, fmt.Errorf("opening the terminal's other side: %w", errno)
	}
	slave = os.NewFile(peer, "terminal")
	if err := slave.Chown(int(uid), -1); err != nil {
		return nil, nil, err
	}
	if rows != 0 && columns != 0 {
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
			return nil, nil, fmt.Errorf("setting the terminal's size: %w", err)
		}
	}
	return master, slave, nil
}
