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

// programName is how the program is found by who comes later. Its number changes with what it does.
const programName = "cntr_shield_1"

// Load returns the shield that is up, or attaches the program: one is enough for any number of sessions, and the kernel
// takes some 38 on one function (BPF_MAX_TRAMP_LINKS). A kernel that cannot is fail.NotSupported.
func Load() (*Shield, error) {
	if s := present(); s != nil {
		return s, nil
	}
	s, err := load()
	if err != nil {
		return nil, fail.New(fail.NotSupported, "", "sessions cannot be shielded from ptrace on this kernel: %w", err)
	}
	return s, nil
}

// present looks for the shield of another process. Only who may load such programs can have made one.
func present() *Shield {
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		if s := of(links.Link); s != nil {
			return s
		}
	}
	return nil
}

// of returns the shield that a link belongs to, or nil if it is something else.
func of(attached link.Link) *Shield {
	info, err := attached.Info()
	if err != nil || info.Type != link.TracingType {
		return nil
	}
	program, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return nil
	}
	defer program.Close()
	about, err := program.Info()
	if err != nil || about.Name != programName {
		return nil
	}
	tables, _ := about.MapIDs()
	if len(tables) != 1 {
		return nil
	}
	table, err := ebpf.NewMapFromID(tables[0])
	if err != nil {
		return nil
	}
	defer table.Close()
	s, err := newShield(table, attached)
	if err != nil {
		return nil
	}
	return s
}

func load() (*Shield, error) {
	if err := permitted(); err != nil {
		return nil, err
	}
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
		Name: programName, Type: ebpf.Tracing, AttachType: ebpf.AttachModifyReturn, AttachTo: hook,
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
	return newShield(table, attached)
}

// newShield makes a shield of copies of the descriptors.
func newShield(table *ebpf.Map, attached link.Link) (*Shield, error) {
	sessions, err := duplicate(table.FD(), "sessions")
	if err != nil {
		return nil, err
	}
	lasting, err := duplicate(attached.(interface{ FD() int }).FD(), "shield")
	if err != nil {
		_ = sessions.Close()
		return nil, err
	}
	return &Shield{Sessions: sessions, Link: lasting}, nil
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
