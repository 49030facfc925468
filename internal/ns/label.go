package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Label is what a security module confines a process with, and how a process takes it on. The zero value is none.
type Label struct {
	Name string // "docker-default", "system_u:system_r:container_t:s0:c1,c2"
	// attribute is the file in /proc/PID/attr that the label for the next execve(2) is written to, and command
	// what comes before the label there.
	attribute, command string
	// Files is how the machine's files are labelled, where what a process may do depends on that (SELinux). The tools
	// must be labelled so, too, or the machine's label does not let them be executed.
	Files string
}

// A module is a security module that labels processes.
type module struct {
	name    string
	current string // in /proc/PID/attr: the label
	exec    string // there, too: what it will be after the next execve(2)
	command string // what is written before that
	files   string // the extended attribute with a file's label, if those matter
}

// modules are those that containers are confined with. AppArmor has files of its own since Linux 5.8, whatever
// other module there is (apparmor(7)); SELinux has those that used to be for all (proc_pid_attr(5)).
var modules = []module{
	{name: "apparmor", current: "apparmor/current", exec: "apparmor/exec", command: "exec "},
	{name: "selinux", current: "current", exec: "exec", files: "security.selinux"},
}

// MachineLabel returns the label of process pid, where a module is active and gives it another label than the
// caller's. It is the host's own procfs that is read, and that is checked: a tmpfs that somebody mounted over /proc would
// have any label (CVE-2019-16884).
func MachineLabel(pid int) (Label, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/proc", &st); err != nil {
		return Label{}, fmt.Errorf("examining /proc: %w", err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return Label{}, errors.New("what is mounted at /proc is no procfs")
	}
	for _, m := range modules {
		if !m.active() {
			continue
		}
		own, err := readLabel("self", m)
		if err != nil {
			return Label{}, err
		}
		its, err := readLabel(fmt.Sprint(pid), m)
		if err != nil {
			return Label{}, err
		}
		if its != "" && its != own {
			return Label{Name: its, attribute: m.exec, command: m.command, Files: fileLabel(pid, m)}, nil
		}
		return Label{}, nil
	}
	return Label{}, nil
}

// fileLabel returns the label of the machine's root directory; empty where it has none.
func fileLabel(pid int, m module) string {
	if m.files == "" {
		return ""
	}
	var b [4096]byte
	n, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root", pid), m.files, b[:])
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b[:n]), "\x00")
}

// active reports whether the kernel has the module and has it switched on.
func (m *module) active() bool {
	if m.name == "selinux" {
		var st unix.Statfs_t
		return unix.Statfs("/sys/fs/selinux", &st) == nil && st.Type == unix.SELINUX_MAGIC
	}
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(enabled), "Y")
}

func readLabel(process string, m module) (string, error) {
	path := "/proc/" + process + "/attr/" + m.current
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && process != "self" {
		return "", err // the process is gone
	}
	if err != nil {
		return "", fmt.Errorf("reading the security label: %w", err)
	}
	return parseLabel(string(data)), nil
}

// parseLabel returns the label without what AppArmor tells besides: "docker-default (enforce)". Several that are
// stacked, "a//&b (mixed)", stay so: all of them confine the process.
func parseLabel(text string) string {
	text = strings.TrimRight(text, "\x00\n")
	if i := strings.LastIndex(text, " ("); i >= 0 && strings.HasSuffix(text, ")") {
		text = text[:i]
	}
	return text
}

// planLabel has the next program that is executed confined with the label. The file is one of a procfs that was
// made for this, by the kernel, and that nobody else has seen: a machine's /proc could hold a file that takes what
// is written to it and does nothing (CVE-2015-1334, CVE-2019-16884).
func planLabel(p *program, l Label) {
	if l.Name == "" {
		return
	}
	proc := newInstance(p, "proc")
	attribute := p.do("opening the security label", unix.SYS_OPENAT, proc, "thread-self/attr/"+l.attribute,
		unix.O_WRONLY|unix.O_CLOEXEC, 0)
	text := l.command + l.Name
	p.do(fmt.Sprintf("taking on the security label %q", l.Name), unix.SYS_WRITE, attribute, text, len(text))
}
