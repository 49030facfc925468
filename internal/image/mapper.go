package image

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// mapped is a request to the device mapper, about the device of a name (linux/dm-ioctl.h).
type mapped struct {
	unix.DmIoctl
	target unix.DmTargetSpec
	table  [2048]byte
}

func (m *mapped) do(control *os.File, what uintptr, name string) error {
	m.Version = [3]uint32{unix.DM_VERSION_MAJOR}
	m.Data_size, m.Data_start = uint32(unsafe.Sizeof(*m)), unix.SizeofDmIoctl
	copy(m.Name[:len(m.Name)-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), what, uintptr(unsafe.Pointer(m)))
	if errno != 0 {
		return errno
	}
	return nil
}

// mapDevice returns a read-only device that the device mapper makes of others, of so many bytes; the caller owns it. If there is one by the name,
// it is shared. It goes when nobody has it open any more.
func mapDevice(name, target string, size uint64, table string) (*os.File, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, fail.New(fail.NotSupported, "load it with modprobe dm-verity", "it has verity data, and there is no device mapper here: %w", err)
	}
	defer control.Close()
	// Two that make the same device at once do not take each other's.
	loops, err := lockLoops()
	if err != nil {
		return nil, err
	}
	defer loops.Close()
	for range loopAttempts {
		device, err := openMapped(control, name, target, size, table)
		if !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) {
			return device, err
		}
		// The last who had it open has just closed it.
	}
	return nil, errors.New("making a device that verifies: each went away")
}

func openMapped(control *os.File, name, target string, size uint64, table string) (*os.File, error) {
	var is mapped
	err := is.do(control, unix.DM_DEV_STATUS, name)
	if err == nil && is.Flags&unix.DM_ACTIVE_PRESENT_FLAG == 0 {
		// Somebody was killed who was making it.
		if err := (&mapped{}).do(control, unix.DM_DEV_REMOVE, name); err != nil {
			return nil, fmt.Errorf("removing the device %s: %w", name, err)
		}
		err = unix.ENXIO
	}
	if errors.Is(err, unix.ENXIO) {
		is = mapped{}
		err = makeMapped(control, name, target, size, table, &is)
	}
	if err != nil {
		return nil, err
	}
	device, err := ns.OpenBlockDevice(unix.Major(is.Dev), unix.Minor(is.Dev))
	if err := remove(control, name); err != nil {
		if device != nil {
			_ = device.Close()
		}
		return nil, err
	}
	return device, err
}

// makeMapped makes a device, and tells its number in is.
func makeMapped(control *os.File, name, target string, size uint64, table string, is *mapped) error {
	load := mapped{target: unix.DmTargetSpec{Length: size / 512}}
	load.Flags, load.Target_count = unix.DM_READONLY_FLAG, 1
	load.target.Next = uint32(unsafe.Sizeof(load.target) + unsafe.Sizeof(load.table))
	copy(load.target.Target_type[:], target)
	if copy(load.table[:len(load.table)-1], table) < len(table) {
		return fmt.Errorf("the table of the device %s is too long", name)
	}
	if err := (&mapped{}).do(control, unix.DM_DEV_CREATE, name); err != nil {
		return fmt.Errorf("making the device %s: %w", name, err)
	}
	if err := load.do(control, unix.DM_TABLE_LOAD, name); err != nil {
		return errors.Join(fail.New(fail.NotSupported, "dmesg tells why; modprobe dm-verity loads what it takes",
			"the kernel cannot verify it: %w", err), (&mapped{}).do(control, unix.DM_DEV_REMOVE, name))
	}
	if err := is.do(control, unix.DM_DEV_SUSPEND, name); err != nil { // which resumes, without a flag
		return errors.Join(fmt.Errorf("starting the device %s: %w", name, err), (&mapped{}).do(control, unix.DM_DEV_REMOVE, name))
	}
	return nil
}

// remove has a device go when nobody has it open.
func remove(control *os.File, name string) error {
	var m mapped
	m.Flags = unix.DM_DEFERRED_REMOVE
	if err := m.do(control, unix.DM_DEV_REMOVE, name); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("letting go of the device %s: %w", name, err)
	}
	return nil
}
