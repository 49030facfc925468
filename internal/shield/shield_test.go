//go:build integration

package shield

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// The test's program is also the command of a session, and the two who attack it.
func TestMain(m *testing.M) {
	switch os.Getenv("SHIELD_TEST") {
	case "machine":
		machine()
	case "attacker":
		attacker()
	case "command":
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
	default:
		os.Exit(m.Run())
	}
}

// again runs this program in another of its roles.
func again(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SHIELD_TEST="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// machine is a machine's first process: it starts the command of the session and a debugger that
// will be in the session, too, and attacks like one of the machine's own.
func machine() {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		fmt.Println("mounting /proc:", err)
		os.Exit(1)
	}
	command, debugger := again("command"), again("attacker")
	held, _ := command.StdinPipe() // held open
	said, _ := command.StdoutPipe()
	orders, _ := debugger.StdinPipe()
	answers, _ := debugger.StdoutPipe()
	if command.Start() != nil || debugger.Start() != nil {
		os.Exit(1)
	}
	_, _ = bufio.NewReader(said).ReadString('\n')
	fmt.Println(command.Process.Pid, debugger.Process.Pid)
	answer := bufio.NewReader(answers)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "machine" {
			fmt.Println(succeeded(command.Process.Pid))
			continue
		}
		fmt.Fprintln(orders, command.Process.Pid)
		line, _ := answer.ReadString('\n')
		fmt.Print(line)
	}
	_ = held.Close()
}

func attacker() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var pid int
		_, _ = fmt.Sscan(lines.Text(), &pid)
		fmt.Println(succeeded(pid))
	}
}

// attempts are the ways to get hold of a process.
var attempts = []struct {
	name string
	try  func(pid int) error
}{
	{"ptrace", func(pid int) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.PtraceSeize(pid); err != nil {
			return err
		}
		_ = unix.PtraceInterrupt(pid)
		var status unix.WaitStatus
		_, _ = unix.Wait4(pid, &status, unix.WALL, nil)
		return unix.PtraceDetach(pid)
	}},
	{"process_vm_readv", func(pid int) error {
		var b [1]byte
		at := uintptr(unsafe.Pointer(&b)) // whatever is there: EFAULT is no refusal
		_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: at, Len: 1}}, 0)
		return err
	}},
	{"mem", func(pid int) error { return open(pid, "mem", unix.O_RDWR) }},
	{"environ", func(pid int) error { return open(pid, "environ", unix.O_RDONLY) }},
	{"root", func(pid int) error { return open(pid, "root/etc", unix.O_RDONLY) }},
	{"cwd", func(pid int) error { return open(pid, "cwd", unix.O_RDONLY) }},
	{"exe", func(pid int) error { return open(pid, "exe", unix.O_RDONLY) }},
	{"fd", func(pid int) error { return open(pid, "fd/1", unix.O_WRONLY) }},
	{"map_files", func(pid int) error {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/map_files", pid))
		if err == nil && len(list) == 0 {
			err = unix.ENOENT
		}
		return err
	}},
	{"namespace", func(pid int) error { return open(pid, "ns/mnt", unix.O_RDONLY) }},
	{"pidfd_getfd", func(pid int) error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		got, err := unix.PidfdGetfd(fd, 1, 0)
		if err == nil {
			_ = unix.Close(got)
		}
		return err
	}},
}

func open(pid int, name string, mode int) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), mode|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// succeeded names the attempts that were not refused.
func succeeded(pid int) string {
	var names []string
	for _, a := range attempts {
		if err := a.try(pid); !errors.Is(err, fs.ErrPermission) {
			names = append(names, a.name)
		}
	}
	return strings.Join(names, " ") + "."
}

// A process of the machine, root with all capabilities, can do nothing to a command; a debugger in the session all.
// Where the kernel does not let the shield be loaded, the same attempts show what that means.
func TestMachineCannotTakeOverACommand(t *testing.T) {
	var names []string
	for _, a := range attempts {
		names = append(names, a.name)
	}
	all, none := strings.Join(names, " ")+".", "."
	s, err := Load()
	if err != nil {
		if !fail.Is(err, fail.NotSupported) {
			t.Fatal(err)
		}
		t.Logf("no shield here: %v", err)
		none = all
	} else {
		defer s.Close()
	}

	root := cgroups(t)
	group, beside := filepath.Join(root, "shield-session"), filepath.Join(root, "shield-other")
	for _, dir := range []string{group, beside} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() {
			// Its processes have been killed and waited for.
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}()
	}
	m := again("machine")
	m.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	orders, err := m.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := m.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// What the machine mounts must not be seen here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = m.Process.Kill()
		_ = m.Wait()
	}()
	answer := bufio.NewReader(answers)
	line := func() string {
		t.Helper()
		text, err := answer.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, %v", text, err)
		}
		return strings.TrimSuffix(text, "\n")
	}
	line() // the process ids, as the machine has them

	children := childrenOf(t, m.Process.Pid)
	if len(children) != 2 {
		t.Fatalf("the machine's children: %q", children)
	}
	command, debugger := children[0], children[1]
	move(t, command, group)
	ask := func(who string) string {
		t.Helper()
		if _, err := fmt.Fprintln(orders, who); err != nil {
			t.Fatal(err)
		}
		return line()
	}
	expect := func(when, who, want string) {
		t.Helper()
		if got := ask(who); got != want {
			t.Errorf("%s, %s succeeded with %q, want %q", when, who, got, want)
		}
	}
	expect("without a shield", "machine", all)
	if s == nil {
		return
	}
	own := Session{Cgroup: inode(t, group), PIDNamespace: uint32(inode(t, "/proc/self/ns/pid"))}
	if err := s.Cover(own); err != nil {
		t.Fatal(err)
	}
	expect("shielded", "machine", none)
	expect("from outside the session", "debugger", none)
	move(t, debugger, group)
	expect("in the session", "debugger", all)
	sub := filepath.Join(group, "below")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	move(t, debugger, sub)
	expect("below the session", "debugger", all)
	move(t, debugger, beside)
	if err := os.Remove(sub); err != nil {
		t.Fatal(err)
	}
	if err := s.Cover(Session{Cgroup: inode(t, beside), PIDNamespace: own.PIDNamespace}); err != nil {
		t.Fatal(err)
	}
	expect("from another session", "debugger", none)

	var pid int
	if _, err := fmt.Sscan(command, &pid); err != nil {
		t.Fatal(err)
	}
	if got := succeeded(pid); got != all {
		t.Errorf("the host's root succeeded with %q, want %q", got, all)
	}
	// As if the machine had the host's pid namespace: then its control group is what tells.
	here := filepath.Join(root, "shield-machine")
	if err := os.Mkdir(here, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(here)
	own.Machine = inode(t, here)
	if err := s.Cover(own); err != nil {
		t.Fatal(err)
	}
	service := again("attacker")
	orders2, err := service.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers2, err := service.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = orders2.Close()
		_ = service.Wait()
	}()
	move(t, fmt.Sprint(service.Process.Pid), here)
	fmt.Fprintln(orders2, pid)
	if got, err := bufio.NewReader(answers2).ReadString('\n'); err != nil || got != none+"\n" {
		t.Errorf("a process in the machine's control group succeeded with %q, %v", got, err)
	}

	if err := s.Uncover(own); err != nil {
		t.Fatal(err)
	}
	if err := s.Uncover(own); err != nil {
		t.Errorf("the second time: %v", err)
	}
	expect("after the session", "machine", all)
}

// cgroups returns where the unified hierarchy is mounted.
func cgroups(t *testing.T) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Fatalf("no unified hierarchy: %v", err)
	}
	return "/sys/fs/cgroup"
}

func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, strings.Fields(string(data))...)
	}
	// In the order in which they were started: the machine's pid namespace is new.
	slices.SortFunc(children, func(a, b string) int { return cmp.Compare(inside(t, a), inside(t, b)) })
	return children
}

// inside returns a process's id in its own pid namespace.
func inside(t *testing.T, pid string) int {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nNSpid:")
	line, _, _ := strings.Cut(rest, "\n")
	fields := strings.Fields(line)
	id, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func move(t *testing.T, pid, group string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(pid), 0); err != nil {
		t.Fatal(err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
