//go:build integration

package fuse

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a mount namespace of their own: whatever happens to the test process, no mount stays.
func TestMain(m *testing.M) {
	if f := children[os.Getenv("FUSE_TEST_CHILD")]; f != nil {
		if err := f(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("FUSE_TEST_NAMESPACE") == "" {
		os.Exit(withTransport(inNamespace))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make mounts private:", err)
		os.Exit(1)
	}
	runtime.GOMAXPROCS(16) // as the session process has it, see session.Main
	os.Exit(m.Run())
}

// transportFlag is what all tests run over. With io_uring, that is turned on for the whole host meanwhile.
var transportFlag = flag.String("transport", string(Device), string(Device+", or "+URing))

// withTransport runs f with io_uring turned on if the tests want it.
func withTransport(f func() int) int {
	if flag.Parse(); Transport(*transportFlag) != URing {
		return f()
	}
	const uring = "/usr/lib/testhost/uring"
	before, err := exec.Command(uring, "Y").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "turn io_uring on:", err)
		return 1
	}
	defer func() { _ = exec.Command(uring, strings.TrimSpace(string(before))).Run() }()
	return f()
}

func inNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "FUSE_TEST_NAMESPACE=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "tests in a mount namespace:", err)
		return 1
	}
	return 0
}

// served is a file system under test.
type served struct {
	*FileSystem
	tree string // what is served
	mnt  string // where it is mounted
	done chan error
	once sync.Once
}

// path is a path on the mount, host the same on the tree.
func (s *served) path(elem ...string) string { return filepath.Join(s.mnt, filepath.Join(elem...)) }
func (s *served) host(elem ...string) string { return filepath.Join(s.tree, filepath.Join(elem...)) }

// serve mounts a tree for the length of a test.
func serve(t testing.TB, tree string, o Options) *served {
	t.Helper()
	root, err := os.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	o.Root = root
	return serveOn(t, tree, o)
}

// serveOn is serve with the tree in the options.
func serveOn(t testing.TB, dir string, o Options) *served {
	t.Helper()
	return serveAs(t, dir, o, Transport(*transportFlag))
}

// serveAs is serveOn over a transport.
func serveAs(t testing.TB, dir string, o Options, over Transport) *served {
	t.Helper()
	fs, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{FileSystem: fs, tree: dir, mnt: tempDir(t), done: make(chan error, 1)}
	if err := mountFuse(dev, s.mnt); err != nil {
		t.Fatal(err)
	}
	var usesItself *atomic.Bool
	switch ops := fs.ops.(type) {
	case *tree:
		usesItself = &ops.usesItself
	case *imageTree:
		usesItself = &ops.usesItself
	}
	usesItself.Store(true)
	go func() { s.done <- fs.Serve(dev, over) }()
	noPoll(t, s.mnt)
	usesItself.Store(false)
	if fs.Transport() != over {
		t.Fatalf("served over %s", fs.Transport())
	}
	t.Cleanup(func() { s.unmount(t) })
	return s
}

// mountFuse makes a superblock for dev and mounts it.
func mountFuse(dev *os.File, dir string) error {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fsfd)
	for k, v := range map[string]string{
		"source": "cntr", "fd": fmt.Sprint(dev.Fd()), "rootmode": "40000", "user_id": "0", "group_id": "0",
	} {
		if err := unix.FsconfigSetString(fsfd, k, v); err != nil {
			return fmt.Errorf("fsconfig %s: %w", k, err)
		}
	}
	for _, k := range []string{"allow_other", "default_permissions"} {
		if err := unix.FsconfigSetFlag(fsfd, k); err != nil {
			return fmt.Errorf("fsconfig %s: %w", k, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("fsconfig create: %w", err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// noPoll lets the kernel find out that the server has no POLL. It asks once, for the first file that is polled; if that
// was done by the Go runtime, which polls each os.File in a state in which no other goroutine can be scheduled to its
// processor, the server might be left without one.
func noPoll(t testing.TB, mnt string) {
	t.Helper()
	fd, err := unix.Open(mnt+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal(err)
	}
}

// unmount ends service the orderly way and checks that Serve returns.
func (s *served) unmount(t testing.TB) {
	t.Helper()
	s.once.Do(func() {
		if err := unix.Unmount(s.mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(s.mnt, unix.MNT_DETACH)
			s.Close()
		}
		select {
		case err := <-s.done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			buf := make([]byte, 1<<20)
			t.Errorf("Serve does not return\n%s", buf[:runtime.Stack(buf, true)])
		}
		s.Close()
	})
}

// files makes a tree: "dir/" is a directory, "link -> target" a symbolic link, everything else a file with its name
// as content.
func files(t testing.TB, names ...string) string {
	t.Helper()
	root := tempDir(t)
	for _, name := range names {
		link, target, isLink := strings.Cut(name, " -> ")
		path := filepath.Join(root, link)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(target, path))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		default:
			must(t, os.WriteFile(path, []byte(name), 0o644))
		}
	}
	return root
}

// tempDir makes a directory that all users can get to.
func tempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("read: %v", err)
	} else if string(got) != want {
		t.Errorf("%s reads %q, want %q", path, got, want)
	}
}

// shell runs a command in a shell. Nothing of the mount may be executed, or be the working directory, by a direct child
// of this process: the Go runtime waits for execve in a state in which the server cannot run.
func shell(t testing.TB, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("sh -c %q: %v\n%s", script, err, out)
	}
	return string(out)
}

// children are what tests do in a process of their own: what could stop this one while the kernel waits for its server.
var children = map[string]func(args []string) error{"mmap": mmapChild, "lock": lockChild, "forbidden": forbiddenChild, "serve": serveChild}

// child runs one of them.
func child(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "FUSE_TEST_CHILD="+name, "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
}

// asUser runs f on a thread with the identity of an ordinary user.
func asUser(t testing.TB, uid, gid uint32, groups []uint32, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := setThreadGroups(groups); err != nil {
			done <- err
			return
		}
		// All of the ids, as setreuid does, so that the capabilities go.
		unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// openFDs counts the descriptors of this process, but for those of threads that were started for requests.
func openFDs(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	n := len(entries)
	for _, e := range entries {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && link == "anon_inode:[io_uring]" {
			n--
		}
	}
	return n
}

// waitFor looks again and again until something is so.
func waitFor(t testing.TB, what string, so func() bool) {
	t.Helper()
	for range 10_000 {
		if so() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("not within 10 s: %s", what)
}
