//go:build integration

package ns

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// container starts a process in namespaces of its own, as util-linux makes them, and returns its pid.
func container(t *testing.T, flags ...string) int {
	t.Helper()
	cmd := exec.Command("unshare", append(flags, "--kill-child", "--", "sh", "-c", "echo $$ up; exec sleep 1000")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "up") {
		t.Fatalf("unshare: %q %v", line, err)
	}
	// unshare(1) forked it for the pid namespace.
	children, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(children))[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// entry enters pid with the host's own tree as root; what the command prints is returned by run.
func entry(t *testing.T, pid int, command ...string) *Entry {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	leader := os.NewFile(uintptr(fd), "leader")
	t.Cleanup(func() { leader.Close() })
	differ, err := Differing(pid)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		t.Fatal(err)
	}
	root := os.NewFile(uintptr(tree), "tree")
	t.Cleanup(func() { root.Close() })
	return &Entry{
		Leader: leader, Namespaces: differ, Root: root, Bounding: ^uint64(0), Dir: "/",
		Mounts:  []Mount{{Target: "proc", Type: "proc"}},
		Command: command, Env: []string{"A=b"}, Path: []string{"/usr/bin", "/bin"},
		Reaper: func(int) {},
	}
}

func enter(t *testing.T, e *Entry) (string, unix.WaitStatus, error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e.Stdio = [3]*os.File{null, w, w}
	p, err := Enter(e)
	w.Close()
	if err != nil {
		return "", 0, err
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	status, _, err := p.Wait()
	if errReap := p.Reap(); errReap != nil {
		t.Error(errReap)
	}
	return string(out), status, err
}

func TestEnterJoinsEveryNamespace(t *testing.T) {
	for name, flags := range map[string][]string{
		"without a user namespace": {"-m", "-p", "-f", "-n", "-i", "-u", "-C", "-T"},
		"with a user namespace":    {"-U", "-r", "-m", "-p", "-f", "-n", "-i", "-u", "-C", "-T"},
	} {
		t.Run(name, func(t *testing.T) {
			pid := container(t, flags...)
			out, status, err := enter(t, entry(t, pid, "readlink", "/proc/self/ns/user", "/proc/self/ns/pid",
				"/proc/self/ns/net", "/proc/self/ns/ipc", "/proc/self/ns/uts", "/proc/self/ns/cgroup", "/proc/self/ns/time",
				"/proc/self/ns/mnt"))
			if err != nil || status != 0 {
				t.Fatalf("status %v, %v: %s", status, err, out)
			}
			got := strings.Fields(out)
			for i, kind := range []string{"user", "pid", "net", "ipc", "uts", "cgroup", "time"} {
				want, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + kind)
				if err != nil {
					t.Fatal(err)
				}
				if got[i] != want {
					t.Errorf("%s: the command is in %s, the machine in %s", kind, got[i], want)
				}
			}
			own, err := MountNamespace(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			its, err := MountNamespace(pid)
			if err != nil {
				t.Fatal(err)
			}
			if got[7] == own || got[7] == its {
				t.Errorf("the command is in mount namespace %s, not one of its own", got[7])
			}
		})
	}
}

// The clocks of a time namespace are the machine's in the command, too.
func TestEnterTakesTheMachinesClocks(t *testing.T) {
	pid := container(t, "-m", "-p", "-f", "-T", "--boottime", "1000000000")
	out, status, err := enter(t, entry(t, pid, "cat", "/proc/uptime"))
	if err != nil || status != 0 || len(strings.Split(out, ".")[0]) != 10 {
		t.Errorf("status %v, %v: the machine is up for %s", status, err, out)
	}
}

// A namespace that the machine shares with the host is not joined: there is nothing to join, and it could be refused.
func TestEnterJoinsOnlyWhatDiffers(t *testing.T) {
	differ, err := Differing(container(t, "-m", "-p", "-f", "-u"))
	if want := Namespaces(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS); err != nil || differ != want {
		t.Errorf("got %x, %v, want %x", differ, err, want)
	}
	if differ, err := Differing(os.Getpid()); err != nil || differ != 0 {
		t.Errorf("this process differs from itself in %x, %v", differ, err)
	}
}

// The label is really written, to the file of the module, on a procfs: without the module, or the label, the kernel refuses it.
func TestEnterTakesOnTheLabel(t *testing.T) {
	wants := []string{"opening the security label: no such file or directory", `taking on the security label "web": invalid argument`}
	if modules[0].active() { // there is no such profile
		wants[0] = `taking on the security label "web": no such file or directory`
	}
	for _, flags := range [][]string{{"-m", "-p", "-f"}, {"-U", "-r", "-m", "-p", "-f"}} {
		pid := container(t, flags...)
		for i, want := range wants {
			e := entry(t, pid, "true")
			e.Label = Label{Name: "web", attribute: modules[i].exec, command: modules[i].command}
			if _, _, err := enter(t, e); err == nil || err.Error() != want {
				t.Errorf("%s: got %v, want %s", modules[i].name, err, want)
			}
		}
	}
	if label, err := MachineLabel(os.Getpid()); err != nil || label != (Label{}) {
		t.Errorf("a label without a module: %+v, %v", label, err)
	}
}

// A program that somebody has open for writing for a moment is executed after it.
func TestEnterWaitsForABusyProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if out, err := exec.Command("cp", "/bin/true", program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pid := container(t, "-m", "-p", "-f")
	for _, test := range []struct {
		busy time.Duration
		want bool
	}{{50 * time.Millisecond, true}, {time.Minute, false}} {
		writer, err := os.OpenFile(program, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(test.busy, func() { _ = writer.Close() })
		_, status, err := enter(t, entry(t, pid, program))
		if (err == nil && status == 0) != test.want || err != nil && !strings.Contains(err.Error(), "text file busy") {
			t.Errorf("busy for %v: %v, %v", test.busy, status, err)
		}
		if timer.Stop() {
			_ = writer.Close()
		}
	}
}

func TestEnterReportsTheCommandsStatus(t *testing.T) {
	pid := container(t, "-m", "-p", "-f")
	_, status, err := enter(t, entry(t, pid, "sh", "-c", "exit 7"))
	if err != nil || !status.Exited() || status.ExitStatus() != 7 {
		t.Errorf("exit 7: %v, %v", status, err)
	}
	_, status, err = enter(t, entry(t, pid, "sh", "-c", "kill -9 $$"))
	if err != nil || !status.Signaled() || status.Signal() != unix.SIGKILL {
		t.Errorf("kill -9: %v, %v", status, err)
	}
	if _, _, err = enter(t, entry(t, pid, "no-such-command")); !fail.Is(err, fail.CommandNotFound) {
		t.Errorf("no such command: %v", err)
	}
	if _, _, err = enter(t, entry(t, pid, "/etc/passwd")); !fail.Is(err, fail.CannotRun) {
		t.Errorf("not a program: %v", err)
	}
}

func TestReaperWaitsForOrphans(t *testing.T) {
	pid := container(t, "-m", "-p", "-f")
	before := time.Now()
	out, status, err := enter(t, entry(t, pid, "sh", "-c", "(sleep 0.3; echo late) & echo early"))
	if err != nil || status != 0 || out != "early\nlate\n" {
		t.Fatalf("%q, %v, %v", out, status, err)
	}
	if took := time.Since(before); took < 300*time.Millisecond {
		t.Errorf("the reaper ended after %v, before the orphan did", took)
	}
}

func TestCommandSeesOnlyItsStreams(t *testing.T) {
	pid := container(t, "-m", "-p", "-f")
	out, _, err := enter(t, entry(t, pid, "ls", "/proc/self/fd"))
	if err != nil || out != "0\n1\n2\n3\n" { // 3 is the directory that ls reads
		t.Errorf("%q, %v", out, err)
	}
}

func TestEnterLeaksNoDescriptor(t *testing.T) {
	pid := container(t, "-m", "-p", "-f")
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	once := func() {
		e := entry(t, pid, "true")
		if _, status, err := enter(t, e); err != nil || status != 0 {
			t.Fatal(status, err)
		}
		e.Leader.Close()
		e.Root.Close()
	}
	once() // the runtime opens some for itself
	before := count()
	for range 20 {
		once()
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
