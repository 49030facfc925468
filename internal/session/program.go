package session

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sealProgram copies the program at path into memory and seals the copy: nobody can change it any more
// (memfd_create(2), Linux 3.17). A session's reaper can be seen in the machine, and so can what it
// executes, through /proc/PID/exe; a machine that writes to that gets EPERM, and never reaches a file
// of the host (CVE-2019-5736).
func sealProgram(path string) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate(programName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	// It is executed as /proc/self/fd/N after descriptors from 3 on were put in place: stay above those.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	_ = unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	program := os.NewFile(uintptr(high), programName)
	if _, err := io.Copy(program, from); err != nil {
		closeAll(program)
		return nil, fmt.Errorf("copying %s into memory: %w", path, err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	// EBUSY: somebody holds a page of it, the kernel's own reclaim or migration for one. It waits for that for 150 ms each time.
	for range 20 {
		if _, err = unix.FcntlInt(program.Fd(), unix.F_ADD_SEALS, seals); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		closeAll(program)
		return nil, fmt.Errorf("sealing the copy of %s: %w", path, err)
	}
	return program, nil
}

// sealedName is where /proc/PID/exe of a session process leads.
const sealedName = "/memfd:" + programName + " (deleted)"
