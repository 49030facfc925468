package shield

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Shield is the attached program and the table of the sessions that it covers.
type Shield struct {
	Sessions *os.File // the table, a BPF map
	Link     *os.File // what keeps the program attached
}

// Session is what the program needs to know of one.
type Session struct {
	Cgroup       uint64 // the session's control group: the inode number of its directory
	PIDNamespace uint32 // the host's: the inode number of /proc/self/ns/pid
	Machine      uint64 // the machine's control group, likewise, if the machine has no pid namespace of its own; else 0
}

// covered is a value of the table. The key is the session's control group.
type covered struct {
	Machine      uint64
	PIDNamespace uint32
	_            uint32
}

// most is how many sessions can be in the table. An entry costs memory only when it is used.
const most = 1 << 16

// unpreallocated is BPF_F_NO_PREALLOC.
const unpreallocated = 1

// Load attaches the program. It takes some milliseconds; one is enough for any number of sessions. A
// kernel that cannot is fail.NotSupported.
func Load() (*Shield, error) {
	s, err := load()
	if err != nil {
		return nil, fail.New(fail.NotSupported, "", "sessions cannot be shielded from ptrace on this kernel: %w", err)
	}
	return s, nil
}

func load() (_ *Shield, err error) {
	offsets, err := findOffsets()
	if err != nil {
		return nil, err
	}
	table, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "cntr_sessions", Type: ebpf.Hash, KeySize: 8, ValueSize: 16, MaxEntries: most, Flags: unpreallocated,
	})
	if err != nil {
		return nil, err
	}
	defer table.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "cntr_shield", Type: ebpf.Tracing, AttachType: ebpf.AttachModifyReturn, AttachTo: hook,
		// The kernel lets only programs under the GPL read its memory; ours may be used under it as well.
		License: "Dual MIT/GPL", Instructions: instructions(offsets, table.FD()),
	})
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("loading the BPF program: %w", unix.EPERM) // without a guess at limits that are long gone
	}
	if err != nil {
		return nil, err
	}
	defer program.Close()
	attached, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err != nil {
		return nil, err
	}
	defer attached.Close()
	s := &Shield{}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if s.Sessions, err = duplicate(table.FD(), "sessions"); err != nil {
		return nil, err
	}
	s.Link, err = duplicate(attached.(interface{ FD() int }).FD(), "shield")
	return s, err
}

func duplicate(fd int, name string) (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Close lets go of the descriptors. The program stays attached as long as somebody else has the link.
func (s *Shield) Close() error {
	for _, f := range []*os.File{s.Sessions, s.Link} {
		if f != nil {
			_ = f.Close()
		}
	}
	return nil
}

// Cover shields a session from now on.
func (s *Shield) Cover(session Session) error {
	return s.change(func(table *ebpf.Map) error {
		return table.Put(session.Cgroup, covered{Machine: session.Machine, PIDNamespace: session.PIDNamespace})
	})
}

// Uncover forgets a session that has ended.
func (s *Shield) Uncover(session Session) error {
	return s.change(func(table *ebpf.Map) error {
		if err := table.Delete(session.Cgroup); !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		return nil
	})
}

func (s *Shield) change(change func(*ebpf.Map) error) error {
	fd, err := unix.FcntlInt(s.Sessions.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicating a descriptor: %w", err)
	}
	table, err := ebpf.NewMapFromFD(fd) // which takes it over
	if err != nil {
		return fmt.Errorf("the shield's sessions: %w", err)
	}
	defer table.Close()
	if err := change(table); err != nil {
		return fmt.Errorf("the shield's sessions: %w", err)
	}
	return nil
}
