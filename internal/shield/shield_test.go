//go:build integration

package shield

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/hostile"
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
			fmt.Println(strings.Join(hostile.Succeeded(command.Process.Pid), " "))
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
		fmt.Println(strings.Join(hostile.Succeeded(pid), " "))
	}
}

// A process of the machine, root with all capabilities, can do nothing to a command; a debugger in the session all.
// Where the kernel does not let the shield be loaded, the same attempts show what that means.
func TestMachineCannotTakeOverACommand(t *testing.T) {
	// The programs run, and so cannot be written to in any case.
	all, none := "ptrace process_vm_readv mem environ root cwd exe fd map_files namespace setns pidfd_getfd", ""
	_ = os.Remove(hostile.Secret) // of a test that was cut short
	s, err := Load()
	if err != nil {
		if !fail.Is(err, fail.NotSupported) {
			t.Fatal(err)
		}
		t.Logf("no shield here: %v", err)
		none = all
	} else {
		defer s.Close()
		// Who comes later finds it, and changes the same table.
		first := s
		if s, err = Load(); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if a, b := number(t, first.Link), number(t, s.Link); a != b {
			t.Errorf("the second shield is link %s, the first %s", b, a)
		}
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
	if got := strings.Join(hostile.Succeeded(pid), " "); got != all {
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

// number returns what the kernel numbers a link with.
func number(t *testing.T, link *os.File) string {
	t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", link.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(info), "\nlink_id:\t")
	if !ok {
		t.Fatalf("not a link: %s", info)
	}
	id, _, _ := strings.Cut(rest, "\n")
	return id
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
