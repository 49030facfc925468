package ns

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// program is a list of system calls for a forked child to make, in order. The parent builds it, with all
// that it points to; the child only executes it, see [run].
type program struct {
	steps []step
	// refs keeps what the steps' arguments point to from being collected. The collector does not
	// move memory, so an address that was taken here is good in the child's copy of it.
	refs []unsafe.Pointer
}

// step is one system call.
type step struct {
	what   string // for the error message: `mounting the machine's "/proc"`
	nr     uintptr
	args   [6]uintptr
	from   [6]result    // where not zero: the argument is what that step returned
	accept []unix.Errno // errors that are none
	blame  fail.Code    // what a failure of it is; empty: Internal
	value  uintptr      // in the child: what the call returned
}

// result names the return value of an earlier step of the same program.
type result int

// do appends a system call.
func (p *program) do(what string, nr uintptr, args ...any) result {
	s := step{what: what, nr: nr}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			s.args[i] = uintptr(a)
		case uintptr:
			s.args[i] = a
		case uint64:
			s.args[i] = uintptr(a)
		case string:
			s.args[i] = p.address(unsafe.Pointer(cString(a)))
		case unsafe.Pointer:
			s.args[i] = p.address(a)
		case result:
			s.from[i] = a
		default:
			panic(fmt.Sprintf("ns: a step cannot take a %T", a)) // a mistake of this package's, seen by every test
		}
	}
	p.steps = append(p.steps, s)
	return result(len(p.steps))
}

// accept lets the last step fail with any of these errors.
func (p *program) accept(errnos ...unix.Errno) { p.steps[len(p.steps)-1].accept = errnos }

// address returns where something is, and keeps it there.
func (p *program) address(at unsafe.Pointer) uintptr {
	p.refs = append(p.refs, at)
	return uintptr(at)
}

// addresses returns the address of a NULL-terminated array of C strings, as execve(2) takes it.
func (p *program) addresses(list []string) uintptr {
	array := make([]*byte, len(list)+1)
	for i, s := range list {
		array[i] = cString(s)
	}
	return p.address(unsafe.Pointer(&array[0]))
}

// cString returns s with a NUL behind it. Callers have checked that s holds none.
func cString(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}

// run executes the steps, in a forked child. It returns the failed step's index and error, or 0.
//
//go:nosplit
//go:norace
//go:nocheckptr
func run(steps []step) (failed int, errno unix.Errno) {
	for i := range steps {
		s := &steps[i]
		for a := range s.args {
			if from := s.from[a]; from != 0 {
				s.args[a] = steps[from-1].value
			}
		}
		v, _, e := syscall.RawSyscall6(s.nr, s.args[0], s.args[1], s.args[2], s.args[3], s.args[4], s.args[5])
		if e != 0 && !accepts(s.accept, e) {
			return i, e
		}
		s.value = v
	}
	return 0, 0
}

//go:nosplit
//go:norace
func accepts(list []unix.Errno, e unix.Errno) bool {
	for _, a := range list {
		if a == e {
			return true
		}
	}
	return false
}
