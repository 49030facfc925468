//go:build integration

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// oddMachine runs the slim machine's program in a directory that prepare has changed, with namespaces of its own
// but nothing mounted, and returns its typed name.
func oddMachine(t *testing.T, prepare func(root string)) string {
	t.Helper()
	return startOddMachine(t, prepare, ":")
}

// mountedMachine is an odd machine in which a script has mounted something: its $1 is the root directory, with an
// empty proc in it, seen from outside but in the machine's namespaces.
func mountedMachine(t *testing.T, script string) string {
	t.Helper()
	return startOddMachine(t, func(root string) { must(t, "mkdir", filepath.Join(root, "proc")) }, script)
}

func startOddMachine(t *testing.T, prepare func(root string), script string, command ...string) string {
	t.Helper()
	if len(command) == 0 {
		command = []string{"/usr/bin/slim"}
	}
	root := filepath.Join(t.TempDir(), "root")
	// Only the program and its libraries, without the mount points that systemd-nspawn made.
	must(t, "mkdir", root)
	must(t, "cp", "-a", "/var/lib/machines/slim/usr", root)
	for _, link := range []string{"lib", "lib64"} {
		must(t, "cp", "-a", "/var/lib/machines/slim/"+link, root)
	}
	prepare(root)
	cmd := exec.Command("unshare", append([]string{
		"--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--kill-child",
		"sh", "-ec", script + `; exec chroot "$@"`, "sh", root,
	}, command...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	// The child of unshare(1) is there, and has become the program, when its executable is.
	path := "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children"
	for deadline := time.Now().Add(10 * time.Second); ; {
		if time.Now().After(deadline) {
			t.Fatal("the machine does not come up")
		}
		if children, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		} else if f := strings.Fields(string(children)); len(f) == 1 {
			if exe, err := os.Readlink("/proc/" + f[0] + "/exe"); err == nil && strings.HasSuffix(exe, command[0]) {
				return "pid:" + f[0]
			}
		}
	}
}

// A machine that has nothing mounted and no directory to mount on gets nothing mounted either.
func TestMachineWithoutAnyDirectory(t *testing.T) {
	machine := oddMachine(t, func(string) {})
	for _, mode := range []string{"--quiet", "--direct"} {
		out := succeeds(t, mode, machine, "sh", "-c", `cat /proc/1/comm; ls /var/lib/cntr; echo x >/tmp/x && echo x >/run/x &&
			echo x >/dev/null && head -c1 /dev/zero | wc -c; ls /dev; ls -d /sys/class/net/lo; script -qc tty /dev/null; whoami; date +%Z`)
		want := "slim\nlib\nlib64\nusr\n1\n" +
			"fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n" +
			"/sys/class/net/lo\n/dev/pts/0\r\nroot\nUTC\n"
		if out != want {
			t.Errorf("%s: got %q, want %q", mode, out, want)
		}
	}
	// By itself, gdb looks into the process's mount namespace, and does not know that the machine was chrooted.
	gdb := succeeds(t, machine, "--", "gdb", "-batch", "-p", "1", "-ex", "bt", "-ex", "detach", "-ex", "file /bin/true", "-ex", "start",
		"-ex", "info sharedlibrary")
	if !strings.Contains(gdb, "in wait_for_work (") || !strings.Contains(gdb, "in main () at ") {
		t.Errorf("gdb: %s", gdb)
	}
}

// What a machine puts into the places that a session takes from it must neither lead out of it, nor be taken for
// what it is not, nor keep anybody from attaching.
func TestMachineFullOfTraps(t *testing.T) {
	secret := "/root/cntr-trap"
	if err := os.WriteFile(secret, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(secret) })
	machine := oddMachine(t, func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		for link, target := range map[string]string{
			"tmp": "../../../../../../../../root", "run": "/../../root", "proc": "/usr", "sys": "nowhere", "etc/hosts": secret,
			"etc/resolv.conf": "../../../../../../.." + secret, "etc/localtime": "/proc/self/root" + secret,
		} {
			must(t, "mkdir", "-p", filepath.Dir(at(link)))
			must(t, "ln", "-s", target, at(link))
		}
		must(t, "mkdir", at("dev"), at("dev/pts"))
		if err := os.WriteFile(at("dev/null"), []byte("a trap"), 0o666); err != nil { // what is thrown away would be kept
			t.Fatal(err)
		}
		for _, fifo := range []string{"etc/passwd", "etc/group", "etc/hostname"} {
			if err := unix.Mkfifo(at(fifo), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, mode := range []string{"--quiet", "--direct"} {
		out := succeeds(t, mode, machine, "sh", "-c", `whoami; stat -c %t:%T /dev/null; cat /proc/1/comm
			cat /etc/hosts /etc/resolv.conf /etc/localtime /tmp/* /run/* 2>/dev/null | grep -c "of the host"; ls -d /sys/class/net/lo
			test -f /etc/hostname && echo file`)
		if want := "root\n1:3\nslim\n0\n/sys/class/net/lo\nfile\n"; out != want {
			t.Errorf("%s: got %q, want %q", mode, out, want)
		}
	}
}
