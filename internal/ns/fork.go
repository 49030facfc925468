package ns

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the Go runtime wants to know about a fork. It keeps these names open for other packages
// (gvisor.dev uses them); package syscall calls the same three around its own fork.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// plan is all that the three children do. Everything in it is made before the fork.
type plan struct {
	join   program // the joiner
	enter  program // the reaper, until it forks the command
	become program // the command, until it executes
	shed   program // the reaper, after it forked: what it lets go of

	exec      []uintptr // paths to try, C strings
	argv      uintptr
	envp      uintptr
	report    uintptr       // descriptor: pipe to the parent, records
	exit      uintptr       // descriptor: pipe to the parent, the command's wait status
	kill      uintptr       // descriptor: the scope's cgroup.kill, or none
	children  uintptr       // descriptor: the reaper's own /proc/thread-self/children
	waitMask  uint64        // the signals that the reaper waits for
	moment    unix.Timespec // between two attempts to execute what is busy
	noMask    uint64        // no signal
	defaulted sigaction

	// What the children hand to the kernel by address. It is here, on the heap, because the compiler
	// may drop a local variable that it only sees converted to a number.
	ending ending
	one    [1]byte
	record record
	list   [4096]byte // of children
}

// ending is what the reaper writes to the exit pipe when the command has ended.
type ending struct {
	status  uint32 // as of wait(2)
	_       uint32
	pending uint64 // signals that the reaper has been sent and has blocked
}

const none = ^uintptr(0)

// sigaction is the kernel's struct sigaction (not libc's) on amd64 and arm64.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// parentDied is the signal that the reaper gets when the session process has died.
const parentDied = unix.SIGUSR1

// stage says in which child a step failed.
type stage uint32

const (
	stageJoin   stage = iota + 1
	stageReaper       // no failure: the value is the reaper's process id
	stageEnter
	stageBecome
	stageShed
	stageExec
)

// record is what a child writes to the report pipe. Shorter than PIPE_BUF, so it is written whole.
type record struct {
	stage stage
	step  uint32
	value uint32 // errno, or process id
}

// fork starts the children. It returns the joiner's process id.
//
// The children are copies of this process without its other threads, so until they execute something
// they may use no lock, no heap, no channel, no growing stack: only calls that are marked nosplit. The
// race detector and the coverage counters are kept out for the same reason.
//
//go:norace
//go:nocheckptr
//go:noinline
func fork(p *plan) (pid int, errno unix.Errno) {
	syscall.ForkLock.Lock()
	beforeFork() // blocks all signals, and makes a growing stack fatal
	r, errno := call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0)
	if errno != 0 || r != 0 {
		afterFork()
		syscall.ForkLock.Unlock()
		return int(r), errno
	}
	afterForkInChild() // default signal handlers, the old signal mask
	joiner(p)
	return 0, 0 // not reached
}

//go:nosplit
//go:norace
//go:nocheckptr
func joiner(p *plan) {
	if i, errno := run(p.join.steps); errno != 0 {
		tell(p, stageJoin, uint32(i), uint32(errno))
		exit(1)
	}
	// CLONE_PARENT: the session process becomes the reaper's parent and can wait for it. The exit
	// signal is then the joiner's own, SIGCHLD (clone(2)).
	pid, errno := call(unix.SYS_CLONE, unix.CLONE_PARENT, 0, 0, 0)
	if errno != 0 {
		tell(p, stageJoin, uint32(len(p.join.steps)), uint32(errno))
		exit(1)
	}
	if pid != 0 {
		tell(p, stageReaper, 0, uint32(pid))
		exit(0)
	}
	reaper(p)
}

//go:nosplit
//go:norace
//go:nocheckptr
func reaper(p *plan) {
	if i, errno := run(p.enter.steps); errno != 0 {
		tell(p, stageEnter, uint32(i), uint32(errno))
		exit(1)
	}
	pid, errno := call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0)
	if errno != 0 {
		tell(p, stageEnter, uint32(len(p.enter.steps)), uint32(errno))
		exit(1)
	}
	if pid == 0 {
		command(p)
	}
	if i, errno := run(p.shed.steps); errno != 0 {
		tell(p, stageShed, uint32(i), uint32(errno))
		exit(1)
	}
	reap(p, pid)
}

// reap waits for all children, the command and what was orphaned, and writes the command's status to the
// exit pipe. It ends when there is no child left.
//
//go:nosplit
//go:norace
//go:nocheckptr
func reap(p *plan, command uintptr) {
	call(unix.SYS_CLOSE, p.report, 0, 0, 0)
	for {
		pid, errno := call(unix.SYS_WAIT4, none, uintptr(unsafe.Pointer(&p.ending.status)), unix.WNOHANG, 0)
		switch {
		case errno == unix.ECHILD:
			exit(0)
		case errno == 0 && pid == command:
			call(unix.SYS_RT_SIGPENDING, uintptr(unsafe.Pointer(&p.ending.pending)), unsafe.Sizeof(p.ending.pending), 0, 0)
			call(unix.SYS_WRITE, p.exit, uintptr(unsafe.Pointer(&p.ending)), unsafe.Sizeof(p.ending), 0)
		case errno == 0 && pid == 0:
			// Nobody is dead. Both signals are blocked, so that none is lost between here and there.
			signal, errno := call(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&p.waitMask)), 0, 0, unsafe.Sizeof(p.waitMask))
			if errno == 0 && signal == uintptr(parentDied) {
				slay(p)
				exit(1)
			}
		}
	}
}

// slay kills and waits for all that descends from the reaper, when the session process has died. The
// orphans of those that it kills become its own children, so in the end it has seen them all. A child that
// has not been waited for keeps its process id: nobody else's process is ever hit.
//
//go:nosplit
//go:norace
//go:nocheckptr
func slay(p *plan) {
	for {
		n, errno := call(unix.SYS_PREAD64, p.children, uintptr(unsafe.Pointer(&p.list)), unsafe.Sizeof(p.list), 0)
		if errno != 0 || n == 0 {
			break // none left, or a kernel without CONFIG_PROC_CHILDREN
		}
		pid := uintptr(0)
		for i := range n {
			if c := p.list[i]; c >= '0' && c <= '9' {
				pid = pid*10 + uintptr(c-'0')
			} else if pid != 0 {
				call(unix.SYS_KILL, pid, uintptr(unix.SIGKILL), 0, 0)
				pid = 0
			}
		}
		if _, errno := call(unix.SYS_WAIT4, none, 0, 0, 0); errno == unix.ECHILD {
			break
		}
	}
	// What else is in the scope, this process included. Where there is no scope, a command that is
	// still there dies of the reaper's death: it asked to (PR_SET_PDEATHSIG).
	p.one[0] = '1'
	call(unix.SYS_WRITE, p.kill, uintptr(unsafe.Pointer(&p.one)), 1, 0)
}

// busyAttempts is how often it is tried again, a moment later, to execute what somebody has open for writing. In a writable tree
// that is also who opens it through /proc/PID/exe of another process: the kernel counts it as a writer before the file server
// can refuse. Whoever does so over and over would keep the command from being executed.
const busyAttempts = 200

//go:nosplit
//go:norace
//go:nocheckptr
func command(p *plan) {
	if i, errno := run(p.become.steps); errno != 0 {
		tell(p, stageBecome, uint32(i), uint32(errno))
		exit(1)
	}
	// Signals that were ignored stay so in the new program: services ignore SIGPIPE, shells' children must not.
	for signal := uintptr(1); signal <= 64; signal++ {
		call(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&p.defaulted)), 0, unsafe.Sizeof(p.defaulted.mask)) // EINVAL for SIGKILL and SIGSTOP
	}
	call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.noMask)), 0, unsafe.Sizeof(p.noMask))

	// As execvp(3): the next directory is tried when there is nothing in this one, and that something
	// was there but could not be executed is remembered.
	reason := unix.ENOENT
	for _, path := range p.exec {
		_, errno := call(unix.SYS_EXECVE, path, p.argv, p.envp, 0)
		for i := 0; i < busyAttempts && errno == unix.ETXTBSY; i++ {
			call(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&p.moment)), 0, 0, 0)
			_, errno = call(unix.SYS_EXECVE, path, p.argv, p.envp, 0)
		}
		if errno == unix.EACCES {
			reason = errno
		} else if errno != unix.ENOENT && errno != unix.ENOTDIR {
			reason = errno
			break
		}
	}
	tell(p, stageExec, 0, uint32(reason))
	exit(127)
}

//go:nosplit
//go:norace
//go:nocheckptr
func tell(p *plan, s stage, step, value uint32) {
	p.record = record{s, step, value}
	call(unix.SYS_WRITE, p.report, uintptr(unsafe.Pointer(&p.record)), unsafe.Sizeof(p.record), 0)
}

//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		call(unix.SYS_EXIT_GROUP, code, 0, 0, 0)
	}
}

// call makes a system call of up to four arguments. They are passed one by one and not as an array: the
// stack of a chain of nosplit functions is bounded, to some 800 bytes.
//
//go:nosplit
//go:norace
//go:nocheckptr
func call(nr, a, b, c, d uintptr) (uintptr, unix.Errno) {
	r, _, e := syscall.RawSyscall6(nr, a, b, c, d, 0, 0)
	return r, e
}
