package shield

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// permitted asks the kernel whether it takes programs for its functions at all. Reading its description of its structures costs some
// 50 ms, this some µs. A program that names no function is invalid (EINVAL); where none is taken, whoever asks, EPERM comes
// first (bpf(2)). Any other answer is left to the real attempt.
func permitted() error {
	const (
		set  = 0xb7 // BPF_ALU64 | BPF_MOV | BPF_K: r0 = 0
		exit = 0x95 // BPF_JMP | BPF_EXIT
	)
	instructions := [2]uint64{set, exit}
	license := [4]byte{'G', 'P', 'L'}
	// The beginning of union bpf_attr for BPF_PROG_LOAD.
	attributes := struct {
		kind, count           uint32
		instructions, license uint64
		_                     [5]uint64 // logging, the kernel's version, flags, the name
		_                     uint32
		attach                uint32
	}{
		kind: unix.BPF_PROG_TYPE_TRACING, count: uint32(len(instructions)), attach: unix.BPF_MODIFY_RETURN,
		instructions: uint64(uintptr(unsafe.Pointer(&instructions))), license: uint64(uintptr(unsafe.Pointer(&license))),
	}
	var pinned runtime.Pinner
	pinned.Pin(&instructions)
	pinned.Pin(&license)
	defer pinned.Unpin()
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attributes)), unsafe.Sizeof(attributes))
	switch errno {
	case 0:
		_ = unix.Close(int(fd))
	case unix.EPERM:
		return fmt.Errorf("loading a BPF program: %w", errno)
	}
	return nil
}
