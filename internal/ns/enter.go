package ns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Entry says how to enter a machine and what to run there. All descriptors stay the caller's.
type Entry struct {
	Leader     *os.File   // pidfd
	Namespaces Namespaces // those to join, from [Differing]
	Root       *os.File   // detached mount that becomes "/"
	Mounts     []Mount    // what is mounted in it, in this order
	Kill       *os.File   // the scope's cgroup.kill, open for writing; nil without a scope

	Bounding uint64 // capabilities to keep, a bit each
	Label    Label  // of AppArmor or SELinux
	UID, GID uint32 // in the machine's user namespace
	Groups   []uint32

	Terminal *os.File    // the command's controlling terminal and its three streams; or nil
	Stdio    [3]*os.File // its streams, where there is no terminal
	Dir      string      // working directory
	DirOr    bool        // if it cannot be entered, "/" will do
	Command  []string    // argv
	Env      []string
	Path     []string // absolute directories to look for the command in, if it has no slash

	Reaper func(pid int) // told the reaper's process id, as soon as it is known
}

// Mount is something to be mounted, on a directory or file that exists in the tree.
type Mount struct {
	Target   string   // relative to the new root: "var/lib/cntr"
	Source   *os.File // what to mount; nil for a new instance of Type
	Detached bool     // Source is a detached mount; else an O_PATH descriptor in the machine's mount namespace
	Type     string   // "proc" or "sysfs": instances that only a process in the machine can make
}

// Enter enters the machine and executes the command. It returns once the command has been executed. The
// caller's thread must be locked and live as long as the caller: the kernel tells the reaper of the
// thread's death, not the process's.
//
// Failures are fail.CommandNotFound and fail.CannotRun for the command itself, and others for the way
// there.
func Enter(e *Entry) (*Process, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reportR.Close()
	exitR, exitW, err := os.Pipe()
	if err != nil {
		closeAll(reportW)
		return nil, err
	}
	children, err := os.Open(os.DevNull) // a number, for the reaper to put something else there
	if err != nil {
		closeAll(reportW, exitR, exitW)
		return nil, err
	}
	defer children.Close()
	p := e.plan(reportW, exitW, children)
	joiner, errno := fork(p)
	runtime.KeepAlive(p)
	runtime.KeepAlive(e)
	closeAll(reportW, exitW) // so that the pipes end when the children's copies are gone
	if errno != 0 {
		closeAll(exitR)
		return nil, forkError(errno)
	}
	reaper, err := e.await(p, reportR)
	_, _ = wait(joiner) // it has ended, or is about to
	if err != nil {
		if reaper != 0 {
			_, _ = wait(reaper)
		}
		closeAll(exitR)
		return nil, err
	}
	return &Process{PID: reaper, status: exitR}, nil
}

// await reads the report pipe until the command has been executed, or a child has failed.
func (e *Entry) await(p *plan, report io.Reader) (reaper int, failed error) {
	for {
		var b [unsafe.Sizeof(record{})]byte
		switch _, err := io.ReadFull(report, b[:]); {
		case errors.Is(err, io.EOF):
			if reaper == 0 && failed == nil {
				failed = errors.New("entering the machine: killed on the way")
			}
			return reaper, failed
		case err != nil:
			return reaper, err
		}
		n := binary.NativeEndian
		s, at, value := stage(n.Uint32(b[0:])), int(n.Uint32(b[4:])), n.Uint32(b[8:])
		if s == stageReaper {
			reaper = int(value)
			e.Reaper(reaper)
			continue
		}
		failed = e.explain(p, s, at, unix.Errno(value))
	}
}

func (e *Entry) explain(p *plan, s stage, at int, errno unix.Errno) error {
	var steps []step
	switch s {
	case stageExec:
		name := e.Command[0]
		if errno == unix.ENOENT || errno == unix.ENOTDIR {
			hint := "commands come from the tools tree; the machine's own are below /var/lib/cntr"
			return fail.New(fail.CommandNotFound, hint, "command not found: %q", name)
		}
		hint := ""
		if errno == unix.EACCES && e.Label.Files != "" {
			hint = fmt.Sprintf("SELinux may not let it run as %q: see man cntr-attachd, or try --label=off", e.Label.Name)
		}
		return fail.New(fail.CannotRun, hint, "cannot run %q: %w", name, errno)
	case stageJoin:
		steps = p.join.steps
	case stageEnter:
		steps = p.enter.steps
	case stageBecome:
		steps = p.become.steps
	case stageShed:
		steps = p.shed.steps
	}
	if at == len(steps) {
		return forkError(errno)
	}
	what, blame := steps[at].what, steps[at].blame
	if errno == unix.ESRCH {
		return fail.New(fail.NotRunning, "", "%s: the machine has just stopped", what)
	}
	if blame != "" {
		return fail.New(blame, "", "%s: %w", what, errno)
	}
	return fmt.Errorf("%s: %w", what, errno)
}

// forkError is the failure of a child to make the next one.
func forkError(errno unix.Errno) error {
	if errno == unix.EAGAIN { // pids.max of a control group, RLIMIT_NPROC or kernel.pid_max
		return fail.New(fail.LimitsExceeded, "TasksMax= of the scope or of cntr.slice may be too low", "no more processes can be made: %w", errno)
	}
	return fmt.Errorf("forking: %w", errno)
}

func (e *Entry) check() error {
	for _, list := range [][]string{e.Command, e.Env, {e.Dir}} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return fail.New(fail.InvalidArgument, "", "%q has a NUL byte", s)
			}
		}
	}
	if len(e.Command) == 0 || e.Command[0] == "" {
		return fail.New(fail.InvalidArgument, "", "the command is empty")
	}
	return nil
}

// plan writes down what the children will do.
func (e *Entry) plan(report, exit, children *os.File) *plan {
	p := &plan{
		report:   report.Fd(),
		exit:     exit.Fd(),
		children: children.Fd(),
		kill:     none,
		waitMask: signals(unix.SIGCHLD, parentDied),
		moment:   unix.NsecToTimespec(1e6),
	}
	if e.Kill != nil {
		p.kill = e.Kill.Fd()
	}
	e.planJoin(&p.join, report, exit, children)
	e.planEnter(&p.enter, children)
	e.planBecome(&p.become, report)
	e.planShed(&p.shed, report, exit, children)

	last := &p.become
	for _, path := range e.candidates() {
		p.exec = append(p.exec, last.address(unsafe.Pointer(cString(path))))
	}
	p.argv = last.addresses(e.Command)
	p.envp = last.addresses(e.Env)
	return p
}

// candidates are the paths that the command may be at, as in execvp(3).
func (e *Entry) candidates() []string {
	name := e.Command[0]
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var paths []string
	for _, dir := range e.Path {
		if strings.HasPrefix(dir, "/") {
			paths = append(paths, strings.TrimSuffix(dir, "/")+"/"+name)
		}
	}
	return paths
}

func (e *Entry) planJoin(p *program, report, exit, children *os.File) {
	// Until the reaper listens for it, the death of the session process is just its end.
	p.do("asking for a signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL))
	// First of all let go of what is not needed, above all of /dev/fuse: a FUSE connection ends with its
	// last descriptor, and a child that held one while it waits for an answer would wait for ever if
	// the session process died.
	keep := []*os.File{report, exit, children, e.Leader, e.Root, e.Kill, e.Terminal, e.Stdio[0], e.Stdio[1], e.Stdio[2]}
	for _, m := range e.Mounts {
		keep = append(keep, m.Source)
	}
	closeBut(p, keep, 0)
	if flags := e.Namespaces &^ unix.CLONE_NEWUSER; flags != 0 {
		p.do("joining the machine's namespaces", unix.SYS_SETNS, e.Leader.Fd(), uintptr(flags))
	}
}

// closeAll closes files on a path where an error of it has no reader.
func closeAll(files ...*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// closeBut closes all descriptors from low on but those of the files.
func closeBut(p *program, files []*os.File, low int) {
	var keep []int
	for _, f := range files {
		if f != nil {
			keep = append(keep, int(f.Fd()))
		}
	}
	slices.Sort(keep)
	for _, fd := range keep {
		if low < fd {
			p.do("closing descriptors", unix.SYS_CLOSE_RANGE, low, fd-1, 0)
		}
		low = max(low, fd+1)
	}
	p.do("closing descriptors", unix.SYS_CLOSE_RANGE, low, int(^uint32(0)), 0)
}

func (e *Entry) planEnter(p *program, children *os.File) {
	p.do("asking for a signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL))
	p.do("setting the name", unix.SYS_PRCTL, unix.PR_SET_NAME, "cntr-reaper")
	every := ^uint64(0)
	p.do("blocking signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, unsafe.Pointer(&every), 0, int(unsafe.Sizeof(every)))
	p.do("becoming a subreaper", unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)

	// The reaper's list of its children, from a procfs that nobody but the kernel has touched.
	proc := newInstance(p, "proc")
	list := p.do("opening the list of children", unix.SYS_OPENAT, proc, "thread-self/children", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	p.accept(unix.ENOENT) // CONFIG_PROC_CHILDREN is not set
	p.do("keeping the list of children", unix.SYS_DUP3, list, children.Fd(), unix.O_CLOEXEC)
	p.accept(unix.EBADF)

	// The machine's mounts are cloned while we are in its mount namespace: open_tree(2) takes only
	// mounts of the caller's own. A clone stays a peer of the original, so it is made a slave
	// at once: later mounts of the machine still arrive, ours never leave.
	clones := make([]result, len(e.Mounts))
	for i, m := range e.Mounts {
		if m.Source == nil || m.Detached {
			continue
		}
		clones[i] = p.do("cloning the machine's "+m.Source.Name(), unix.SYS_OPEN_TREE, m.Source.Fd(), "",
			unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
		slave := &unix.MountAttr{Propagation: unix.MS_SLAVE}
		p.do("detaching the machine's "+m.Source.Name(), unix.SYS_MOUNT_SETATTR, clones[i], "",
			unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, unsafe.Pointer(slave), int(unsafe.Sizeof(*slave)))
	}
	p.do("making a mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	private := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	p.do("making the mounts private", unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, "/", unix.AT_RECURSIVE,
		unsafe.Pointer(private), int(unsafe.Sizeof(*private)))
	// The new root as well, should it be a clone: what is mounted in it would appear in the original.
	p.do("making the tools tree private", unix.SYS_MOUNT_SETATTR, e.Root.Fd(), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE,
		unsafe.Pointer(private), int(unsafe.Sizeof(*private)))
	p.do("mounting the tools tree", unix.SYS_MOVE_MOUNT, e.Root.Fd(), "", unix.AT_FDCWD, "/",
		unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.do("entering the tools tree", unix.SYS_FCHDIR, e.Root.Fd())
	for i, m := range e.Mounts {
		var from any = clones[i]
		if m.Source == nil {
			from = newInstance(p, m.Type)
		} else if m.Detached {
			from = m.Source.Fd()
		}
		p.do(fmt.Sprintf("mounting /%s", m.Target), unix.SYS_MOVE_MOUNT, from, "", unix.AT_FDCWD, m.Target,
			unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	// The old root goes on top of the new one and is taken off again (pivot_root(2), NOTES): no
	// directory for it is needed.
	p.do("changing the root", unix.SYS_PIVOT_ROOT, ".", ".")
	p.do("letting go of the old root", unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	p.do("entering the new root", unix.SYS_CHDIR, "/")
}

// newInstance adds the steps that make a file system instance in the machine's namespaces, which is what
// procfs and sysfs go by.
func newInstance(p *program, fstype string) result {
	attributes := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	if fstype == "sysfs" {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	ctx := p.do("opening "+fstype, unix.SYS_FSOPEN, fstype, unix.FSOPEN_CLOEXEC)
	p.do("creating "+fstype, unix.SYS_FSCONFIG, ctx, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	return p.do("mounting "+fstype, unix.SYS_FSMOUNT, ctx, unix.FSMOUNT_CLOEXEC, attributes)
}

func (e *Entry) planBecome(p *program, report *os.File) {
	// While still root on the host: there both are always allowed.
	planLabel(p, e.Label)
	p.do("dropping groups", unix.SYS_SETGROUPS, 0, 0)
	if e.Namespaces&unix.CLONE_NEWUSER != 0 {
		// This gives all capabilities in that namespace, and none outside, and clears the others' sets.
		p.do("joining the machine's user namespace", unix.SYS_SETNS, e.Leader.Fd(), unix.CLONE_NEWUSER)
	}
	for c := 0; c < 64; c++ {
		if e.Bounding&(1<<c) == 0 {
			p.do(fmt.Sprintf("dropping capability %d", c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
			p.accept(unix.EINVAL) // this kernel has no such capability
		}
	}
	if len(e.Groups) > 0 {
		p.do("setting groups", unix.SYS_SETGROUPS, len(e.Groups), unsafe.Pointer(&e.Groups[0]))
		p.accept(unix.EPERM) // /proc/PID/setgroups says deny: then nobody there has any
	}
	p.do(fmt.Sprintf("becoming group %d", e.GID), unix.SYS_SETRESGID, int(e.GID), int(e.GID), int(e.GID))
	p.do(fmt.Sprintf("becoming user %d", e.UID), unix.SYS_SETRESUID, int(e.UID), int(e.UID), int(e.UID))
	// Last, for a change of identity forgets it (prctl(2)).
	p.do("asking for a signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL))
	p.do("starting a session", unix.SYS_SETSID)
	if e.Terminal != nil {
		p.do("taking the terminal", unix.SYS_IOCTL, e.Terminal.Fd(), unix.TIOCSCTTY, 0)
	}
	for fd := range 3 {
		from := e.Terminal
		if from == nil {
			from = e.Stdio[fd]
		}
		p.do("setting up the streams", unix.SYS_DUP3, from.Fd(), fd, 0)
	}
	// All but the pipe that tells whether the command was executed, and ends with that. Now, for the working directory
	// may be given as /proc/self/fd/N (CVE-2024-21626).
	closeBut(p, []*os.File{report}, 3)
	p.do("setting the umask", unix.SYS_UMASK, 0o022)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		// The Go runtime has raised it for this process and keeps what it was to itself. This is what
		// systemd gives services, for the sake of those who use select(2).
		limit.Cur = min(1024, limit.Max)
		p.do("setting the limit on open files", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, unsafe.Pointer(&limit), 0)
	}
	if e.DirOr {
		p.do("entering /", unix.SYS_CHDIR, "/")
		p.do("entering the directory", unix.SYS_CHDIR, e.Dir)
		p.accept(unix.ENOENT, unix.EACCES, unix.ENOTDIR)
	} else {
		p.do(fmt.Sprintf("entering the directory %q", e.Dir), unix.SYS_CHDIR, e.Dir)
		p.steps[len(p.steps)-1].blame = fail.InvalidArgument
	}
}

// planShed leaves the reaper with what it needs for its rounds. It is in the machine's pid namespace,
// where the machine's root may ptrace it: there must be nothing to be gained. It keeps one capability,
// to be able to kill the command whoever that has become.
func (e *Entry) planShed(p *program, report, exit, children *os.File) {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	kill := &[2]unix.CapUserData{{Effective: 1 << unix.CAP_KILL, Permitted: 1 << unix.CAP_KILL}}
	p.do("dropping capabilities", unix.SYS_CAPSET, unsafe.Pointer(header), unsafe.Pointer(kill))
	p.do("asking for a signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(parentDied))
	closeBut(p, []*os.File{report, exit, children, e.Kill}, 0)
}

func signals(list ...unix.Signal) uint64 {
	var mask uint64
	for _, s := range list {
		mask |= 1 << (s - 1)
	}
	return mask
}
