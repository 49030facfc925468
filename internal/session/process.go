package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/ns"
	"github.com/cntr-attach/cntr-attach/internal/shield"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// IsProcess reports whether this process was started to become a session process. If so, main calls
// [Main] and nothing else.
func IsProcess() bool { return os.Args[0] == programName }

// process is what a session process holds.
type process struct {
	request  request
	control  *net.UnixConn
	lines    *json.Decoder // on control
	leader   *machine.Leader
	status   *os.File
	shield   *shield.Shield // nil if there is none
	covered  shield.Session
	image    *image.Image // nil is the host
	stdio    [3]*os.File
	stuck    bool // a thread may hang in the kernel for as long as the machine likes
	reserved bool // no threads may be started any more, see reserve
	members  *members
	tools    *image.Tree
	tree     *tree
	fs       *fuse.FileSystem
	served   chan error // what the file system's Serve returned
	device   *os.File   // the file system's, until it is served
	mount    *os.File   // likewise, detached
	master   *os.File
	terminal *os.File
}

// Main is a session process's whole life. It returns the exit status. The calling goroutine must be
// locked to the main thread: the children are told of that thread's death.
func Main() int {
	if err := harden(); err != nil {
		fmt.Fprintf(os.Stderr, "cntr-session: %v\n", err)
		return 1
	}
	p, err := begin()
	if errors.Is(err, io.EOF) {
		return 0 // nobody needs it any more
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cntr-session: %v\n", err)
		return 1
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	reaper, err := p.start()
	if errReply := sendReply(p.control, err, p.master); err == nil && errReply != nil {
		err = errReply // the launcher is gone, and nobody holds this session
	}
	closeAll(p.master) // the client's now: when it closes it, the terminal hangs up
	_ = p.control.Close()
	if err != nil {
		if reaper != nil {
			_ = p.end(reaper) // the reason is what matters now
		}
		p.close()
		if p.stuck {
			p.letGo()
		}
		return 1
	}
	// The file system's server threads are in system calls nearly all of the time. With fewer Ps than such threads the
	// runtime's monitor takes Ps away from those that wait, every 20 µs, and they have to wait for one again before they
	// can go on: a sixth of the time of an open and close.
	if !p.reserved {
		runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), serverPs))
	}
	closeAll(p.stdio[:]...) // the command's alone: their other ends see when it closes them
	p.logStart()
	s := p.wait(reaper, terminate)
	closeAll(p.terminal) // not before: a command may let go of its terminal and open it again
	usage, wall := p.usage()
	s.Usage, s.Wall = &usage, wall
	p.logEnd(s)
	if err := leaveResult(s, p.request.Results, p.request.Info.ID); err != nil {
		fmt.Fprintf(os.Stderr, "cntr-session: leaving the session's result: %v\n", err)
	}
	if err := s.Write(p.status); err != nil && !errors.Is(err, unix.EPIPE) {
		fmt.Fprintf(os.Stderr, "cntr-session: telling the session's status: %v\n", err)
	}
	p.close()
	return 0
}

// serverPs is a little more than the number of server threads that wait for requests.
const serverPs = 16

// harden makes the process opaque to others, machines above all (CVE-2016-9962), and drops what the command
// must not inherit (CVE-2022-29162).
func harden() error {
	// An executed memfd has the descriptor's number for a name.
	if err := setName(waitingName); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming undumpable: %w", err)
	}
	return ns.DropInheritable()
}

func setName(name string) error {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return fmt.Errorf("setting the process name: %w", err)
	}
	return nil
}

// begin waits for the request.
func begin() (*process, error) {
	line := ownCommandLine()
	if err := line.show([]string{waitingName}); err != nil {
		return nil, err
	}
	unix.CloseOnExec(fdControl)
	control := os.NewFile(fdControl, "control")
	conn, err := net.FileConn(control)
	closeAll(control)
	if err != nil {
		return nil, fmt.Errorf("a session process is started by cntr-attach or cntr-attachd only (%w)", err)
	}
	p := &process{served: make(chan error, 1), control: conn.(*net.UnixConn)}
	var d descriptors
	if p.request, d, p.lines, err = receiveRequest(p.control); err != nil {
		return nil, err
	}
	// It tells the session process from its reaper, and from those that wait.
	if err := setName(programName); err != nil {
		return nil, err
	}
	p.leader = &machine.Leader{PID: p.request.Info.Leader, File: d.leader}
	p.status, p.stdio = d.status, d.stdio
	if p.request.Shielded {
		p.shield = &shield.Shield{Sessions: d.sessions, Link: d.shield}
	}
	p.image = p.request.image(d.image)
	return p, line.show(p.request.Info.arguments())
}

// start does all that comes before the command runs.
func (p *process) start() (*ns.Process, error) {
	entry, err := p.prepare()
	if err != nil {
		return nil, err
	}
	// Everything so far could be done while systemd makes the scope. From here on children are born.
	var told proceed
	if err := p.lines.Decode(&told); err != nil {
		return nil, fmt.Errorf("waiting to proceed: %w", err)
	}
	p.serve(told.FewTasks)
	if p.members, err = ownMembers(p.request.Scope, p.leader.PID); err != nil {
		return nil, err
	}
	if entry.Kill, err = p.members.openKill(); err != nil {
		return nil, err
	}
	defer closeAll(entry.Kill)
	if p.shield != nil {
		// Before there is anything of the session to be seen in the machine.
		if p.covered, err = p.members.covered(entry.Namespaces, p.leader.PID); err != nil {
			return nil, err
		}
		if err := p.shield.Cover(p.covered); err != nil {
			return nil, err
		}
	}
	entry.Reaper = p.members.setReaper
	return ns.Enter(entry)
}

// prepare reads what there is to know of the machine and makes the parts of the session.
func (p *process) prepare() (_ *ns.Entry, err error) {
	pid := p.leader.PID
	e := &ns.Entry{
		Leader: p.leader.File, Command: p.request.Command, Stdio: p.stdio, Dir: p.request.Dir,
		Reaper: func(int) {},
	}
	if e.Namespaces, err = ns.Differing(pid); err != nil {
		return nil, p.gone(err)
	}
	if e.Bounding, err = ns.Bounding(pid); err != nil {
		return nil, p.gone(err)
	}
	if !p.request.Strict {
		// For a debugger, and for a debugger that reads the machine's files through its mount namespace.
		e.Bounding |= 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_CHROOT
	}
	if e.Bounding, err = p.request.Capabilities.limit(e.Bounding, p.request.Info.Machine); err != nil {
		return nil, err
	}
	if !p.request.NoLabel {
		if e.Label, err = ns.MachineLabel(pid); err != nil {
			return nil, p.gone(err)
		}
	}
	uids, gids, err := ns.IDMaps(pid)
	if err != nil {
		return nil, p.gone(err)
	}
	if err := p.openTools(); err != nil {
		return nil, err
	}
	m, err := p.examine(uids, gids, e.Label.Files)
	if err != nil {
		return nil, err
	}
	p.tree = m.tree
	e.UID, e.GID, e.Groups = m.account.uid, m.account.gid, m.account.groups
	if p.request.Terminal {
		p.master, p.terminal, err = openTerminal(p.tree.devpts, outside(uids, e.UID), p.request.Rows, p.request.Columns)
		if err != nil {
			return nil, err
		}
		e.Terminal = p.terminal
	}
	if err := p.openTree(uids, gids, e); err != nil {
		return nil, err
	}
	e.Root, e.Mounts = p.mount, p.tree.mounts
	e.Env, e.Path = environment(p.request, m.account, m.environ, p.tools.Environ)
	e.Command = p.shell(e.Command)
	if e.Dir, e.DirOr = strings.CutPrefix(e.Dir, "-"); e.Dir == "" {
		e.Dir = "/"
	}
	return e, nil
}

// openTree makes the file system.
func (p *process) openTree(uids, gids []ns.Range, e *ns.Entry) error {
	ids := fuse.IDMap{UID: shown(p.tools.UIDs, uids), GID: shown(p.tools.GIDs, gids)}
	if c := p.request.Caller; c != nil {
		ids = fuse.IDMap{
			UID: shownTo(ids.UID, []uint32{c.UID}, outside(uids, e.UID)),
			GID: shownTo(ids.GID, append([]uint32{c.GID}, c.Groups...), outside(gids, e.GID)),
		}
	}
	var cache fuse.Cache
	watch := fuse.WatchTimeout
	if p.tools.Immutable || p.request.NoWatch {
		watch = 0
	}
	if p.tools.Immutable {
		cache = fuse.Cache{Entry: fuse.Forever, Attr: fuse.Forever, Negative: fuse.Forever}
	}
	var err error
	options := fuse.Options{
		Root:     p.tools.Root,
		Cache:    cache,
		Writable: p.request.Info.Writable,
		IDs:      ids,
		Caller:   p.request.Caller.credential(),
		Extra:    p.tree.extra,
		// Off by themselves where the kernel or a file cannot.
		Passthrough: true,
		Watch:       watch,
		Allow:       func(tid uint32) bool { return p.members.allows(tid) },
		Guarded:     p.shield != nil,
	}
	if p.tools.Files != nil {
		options.Files = p.tools.Files
	}
	p.fs, err = fuse.New(options)
	if err != nil {
		return fmt.Errorf("opening the tools tree: %w", err)
	}
	p.device, p.mount, err = ns.MountFUSE(p.request.Info.Writable, p.tools.SetID, e.Label.Files)
	return err
}

// serve starts the file system. What io_uring takes cannot be reserved.
func (p *process) serve(fewTasks bool) {
	over := fuse.URing
	if fewTasks {
		over = fuse.Device
	}
	go func() { p.served <- p.fs.Serve(p.device, over) }()
	if fewTasks {
		p.reserve()
	}
}

// gone explains an error that the machine's end is the likely cause of. A process that is ending has lost its
// namespaces a moment before its pidfd tells.
func (p *process) gone(err error) error {
	if p.leader.Alive() && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.stopped()
}

func (p *process) stopped() *fail.Error {
	return fail.New(fail.NotRunning, "", "machine %q has stopped", p.request.Info.Machine)
}

// ending is how the command ended: err is io.EOF where the reaper was killed before it could tell.
type ending struct {
	status   unix.WaitStatus
	stopping bool // the reaper was asked to end, too
	err      error
}

// wait waits for the session's end and brings it about for everything that belongs to it.
func (p *process) wait(reaper *ns.Process, terminate <-chan os.Signal) status.Status {
	command := make(chan ending, 1)
	go func() {
		status, stopping, err := reaper.Wait()
		command <- ending{status, stopping, err}
	}()
	abandoned := make(chan struct{})
	go func() {
		waitForReader(p.status)
		close(abandoned)
	}()
	stopped := make(chan struct{})
	go func() {
		p.leader.Wait(-1)
		close(stopped)
	}()

	var s status.Status
	var end *ending
	// A command gets a moment to end by itself.
	ask := func(signal unix.Signal) {
		s.Terminated = true
		p.members.signalOthers(signal)
		select {
		case e := <-command:
			end = &e
		case <-time.After(terminationGrace):
		}
	}
	select {
	case e := <-command:
		end = &e
	case <-terminate:
		ask(unix.SIGTERM)
	case <-abandoned:
		ask(unix.SIGHUP) // as if a terminal had hung up
	case <-stopped:
		// With a pid namespace of its own, the machine takes the command along, and that is heard first.
		s.Error = p.stopped()
	case err := <-p.served:
		s.Error = fail.New(fail.Internal, "", "the tools tree is no longer served: %w", err)
	}
	if left := p.end(reaper); left != nil {
		fmt.Fprintf(os.Stderr, "cntr-session: ending session %s: %v\n", p.request.Info.ID, left)
	}
	if s.Error != nil {
		return s
	}
	if end == nil {
		e := <-command // it has just been killed
		end = &e
	}
	p.judge(&s, *end, stopped, terminate)
	return s
}

// terminationGrace is how long a command may take to end by itself when its session is ended.
const terminationGrace = 2 * time.Second

// stopWait bounds how long a machine may take to stop after it has asked its processes to end; killWait
// how long the news of its end may take after the kernel killed all that was in it.
const (
	stopWait = 10 * time.Second
	killWait = time.Second
)

// judge says what the end of the command means. Whoever stops a machine ends its processes first, with
// a signal to all of them; whoever stops the session's scope does the same, but signals this process, too.
func (p *process) judge(s *status.Status, e ending, stopped <-chan struct{}, terminate <-chan os.Signal) {
	ended := statusOf(e.status)
	var limit time.Duration
	switch {
	case s.Terminated:
	case e.err != nil:
		limit = killWait
	case e.stopping && ended.Signal != 0:
		limit = stopWait
	}
	if limit != 0 {
		select {
		case <-stopped:
			s.Error = p.stopped()
			return
		case <-terminate:
			s.Terminated = true
		case <-time.After(limit):
		}
	}
	switch {
	case e.err == nil:
		s.Exit, s.Signal = ended.Exit, ended.Signal
	case s.Terminated:
		s.Signal = int(unix.SIGKILL)
	default:
		s.Error = fail.New(fail.Internal, "somebody in the machine may have killed it",
			"the session was killed from outside")
	}
}

// end kills what is left of the session, and waits for the reaper.
func (p *process) end(reaper *ns.Process) error {
	err := p.members.killOthers(endLimit)
	reaped := make(chan error, 1)
	go func() { reaped <- reaper.Reap() }()
	select {
	case errReap := <-reaped:
		return errors.Join(err, errReap)
	case <-time.After(reapLimit):
	}
	// It waits for what cannot be killed, or somebody in the machine has stopped it.
	return errors.Join(err, reaper.Kill(), <-reaped)
}

// reapLimit bounds how long the reaper may take to end when nothing is left below it.
const reapLimit = time.Second

// endLimit bounds the end of a session whose processes hang in the kernel.
const endLimit = 5 * time.Second

func (p *process) close() {
	if p.fs != nil {
		_ = p.fs.Close() // the process ends right after
	}
	// Last, for what could not be killed. A control group's number is not used again: all that an entry costs is memory.
	if p.shield != nil {
		_ = p.shield.Uncover(p.covered)
	}
}

// letGo closes what others wait for the end of. A process of which a thread hangs in the kernel keeps its descriptors
// when it ends.
func (p *process) letGo() {
	closeAll(append(p.stdio[:], p.status)...)
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(int(null.Fd()), fd, 0) // cannot fail: both are there
		}
	}
}

// waitForReader returns when a pipe has no reader any more.
func waitForReader(pipe *os.File) {
	for {
		// No events asked for: POLLERR always comes (poll(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pipe.Fd())}}, -1)
		if n > 0 || (err != nil && err != unix.EINTR) {
			return
		}
	}
}

// statusOf translates a wait status.
func statusOf(w unix.WaitStatus) status.Status {
	if w.Signaled() {
		return status.Status{Signal: int(w.Signal())}
	}
	return status.Status{Exit: w.ExitStatus()}
}
