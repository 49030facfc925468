//go:build integration

package testhost

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The test host and its machines are what the package documentation says.

func TestHostRunsSystemd(t *testing.T) {
	if name := output(t, "cat", "/proc/1/comm"); name != "systemd" {
		t.Errorf("process 1 is %q", name)
	}
	if release := output(t, "sh", "-c", `. /etc/os-release; echo "$ID $VERSION_CODENAME"`); release != "debian "+suite {
		t.Errorf("it is %q", release)
	}
	for _, name := range []string{"org.freedesktop.machine1", "org.freedesktop.PolicyKit1", "org.freedesktop.login1"} {
		output(t, "busctl", "call", name, "/", "org.freedesktop.DBus.Peer", "Ping")
	}
}

func TestTestsRunInAUnitOfTheirOwn(t *testing.T) {
	cgroup := output(t, "sh", "-c", "grep ^0:: /proc/self/cgroup")
	if !strings.HasPrefix(cgroup, "0::/system.slice/testhost-run-") {
		t.Errorf("the control group is %q", cgroup)
	}
	if dir, err := os.Getwd(); err != nil || filepath.Base(dir) != "testhost" {
		t.Errorf("the working directory is %q, %v", dir, err)
	}
}

func TestMachinesAreBooted(t *testing.T) {
	for _, machine := range []string{"deb", "debu"} {
		if state := output(t, "systemctl", "--machine="+machine, "is-system-running"); state != "running" {
			t.Errorf("%s is %q", machine, state)
		}
		for _, tool := range []string{"gdb", "strace", "ip", "ps"} {
			if _, err := os.Lstat("/var/lib/machines/" + machine + "/usr/bin/" + tool); err == nil {
				t.Errorf("%s has %s", machine, tool)
			}
		}
	}
}

func TestMachinesHaveNamespacesOfTheirOwn(t *testing.T) {
	for _, test := range []struct {
		machine, address string
		userNamespace    bool
	}{
		{"deb", "10.88.1.2/24", false},
		{"debu", "10.88.2.2/24", true},
		{"slim", "10.88.3.2/24", false},
	} {
		t.Run(test.machine, func(t *testing.T) {
			leader := leaderOf(t, test.machine)
			for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
				if namespace(t, leader, kind) == namespace(t, "1", kind) {
					t.Errorf("it is in the host's %s namespace", kind)
				}
			}
			if own := namespace(t, leader, "user") != namespace(t, "1", "user"); own != test.userNamespace {
				t.Errorf("a user namespace of its own: %v", own)
			}
			if addresses := output(t, "nsenter", "--target="+leader, "--net", "ip", "address"); !strings.Contains(addresses, test.address) {
				t.Errorf("no address %s:\n%s", test.address, addresses)
			}
		})
	}
}

func TestSlimHasOneProgramAndItsLibraries(t *testing.T) {
	var files []string
	root := "/var/lib/machines/slim"
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(files, "/usr/bin/slim") || len(files) != 3 {
		t.Errorf("it has %q, not a program, the C library and the dynamic loader", files)
	}
	leader := leaderOf(t, "slim")
	for _, dir := range []string{"etc", "var", "bin", "sbin"} {
		if _, err := os.Lstat("/proc/" + leader + "/root/" + dir); err == nil {
			t.Errorf("it has /%s", dir)
		}
	}
	if err := os.WriteFile("/proc/"+leader+"/root/new", nil, 0o644); err == nil {
		t.Error("its root is not read-only")
	}
}

func TestSlimEndsWhenAsked(t *testing.T) {
	const unit = "systemd-nspawn@slim.service"
	t.Cleanup(func() { output(t, "systemctl", "start", unit) })
	output(t, "systemctl", "stop", unit)
	if result := output(t, "systemctl", "show", "--property=Result", "--value", unit); result != "success" {
		t.Errorf("stopping it: %s", result)
	}
}

func leaderOf(t *testing.T, machine string) string {
	t.Helper()
	return output(t, "machinectl", "show", "--property=Leader", "--value", machine)
}

func namespace(t *testing.T, pid, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/" + pid + "/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func output(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}
