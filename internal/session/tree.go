package session

import (
	_ "embed" // sysroot.py
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// machineDir is where the machine's own root file system appears in a session.
const machineDir = "var/lib/cntr"

// privateDir is a directory of the session's own, for sockets that nobody in the machine is to connect to.
const privateDir = "var/lib/cntr-private"

// tree is the session's view: what the file system makes up, and what is mounted on that.
type tree struct {
	extra   map[string]fuse.Entry
	mounts  []ns.Mount
	devpts  *os.File
	sources []*os.File // to be closed with the tree
	label   string     // of the files of its own, for SELinux
}

// newTree lays out a session's tree over the tools tree. Every mount point is made up by the file system,
// so neither the tools tree nor the machine needs to have it. Sources in the machine are opened here, as
// O_PATH descriptors below its root, and checked to be what they should be. owner is the command's user and ttyGID
// the group of terminals, in the host's terms; label, if any, is what the machine's files are labelled with for SELinux.
func newTree(root *ns.Root, tools image.Looks, leader int, machine string, owner, ttyGID uint32, label string) (_ *tree, err error) {
	t := &tree{extra: map[string]fuse.Entry{}, label: label}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	t.mountDir(machineDir, ns.Mount{Source: root.Dir()})
	if err := t.proc(root, leader); err != nil {
		return nil, err
	}
	for _, layout := range []func(*ns.Root) error{t.sys, t.dev} {
		if err := layout(root); err != nil {
			return nil, err
		}
	}
	// Over the machine's: the terminals of the session are its own.
	if t.devpts, err = ns.MountTerminals(ttyGID, label); err != nil {
		return nil, err
	}
	t.own(t.devpts)
	t.mounts = append(t.mounts, ns.Mount{Target: "dev/pts", Source: t.devpts, Detached: true})

	if err := t.scratch(root, "tmp", "1777"); err != nil {
		return nil, err
	}
	if err := t.scratch(root, "run", "755"); err != nil {
		return nil, err
	}
	if err := t.private(owner); err != nil {
		return nil, err
	}
	for name, standIn := range machineFiles {
		if err := t.file(root, name, standIn); err != nil {
			return nil, err
		}
	}
	for name, standIn := range databases {
		if t.extra[name], err = t.database(root, tools, name, standIn); err != nil {
			return nil, err
		}
	}
	t.timeZone(root)
	for _, dir := range gdbInit {
		t.extra[dir+"/cntr-attach.py"] = regular(sysrootScript)
	}
	// Debian's bash puts this into its prompt.
	t.extra["etc/debian_chroot"] = regular(promptName(machine) + "\n")
	return t, nil
}

// gdbInit is where gdb looks for system-wide settings (--with-system-gdbinit-dir), in Debian and in Fedora.
var gdbInit = []string{"etc/gdb/gdbinit.d", "etc/gdbinit.d"}

//go:embed sysroot.py
var sysrootScript string

// machineFiles are the files that a session takes from the machine, and what it gets where the machine
// has none.
var machineFiles = map[string]fuse.Entry{
	"etc/hosts":       regular("127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
	"etc/hostname":    regular(""),
	"etc/resolv.conf": regular(""),
	"etc/localtime":   {Mode: unix.S_IFLNK | 0o777, Target: zoneinfo + "UTC"},
}

// zoneinfo is where the host has its time zones.
const zoneinfo = "/usr/share/zoneinfo/"

// timeZone finds the time zone of a machine that names one but does not have it: a slim one has no zones. The host's is
// the same.
func (t *tree) timeZone(root *ns.Root) {
	if t.extra["etc/localtime"].Mode&unix.S_IFMT != unix.S_IFLNK {
		return
	}
	target, err := root.Readlink("/etc/localtime")
	if err != nil {
		return
	}
	if _, zone, ok := strings.Cut(target, zoneinfo); ok && zone != "" && path.Clean("/"+zone) == "/"+zone {
		t.extra["etc/localtime"] = fuse.Entry{Mode: unix.S_IFLNK | 0o777, Target: zoneinfo + zone}
	}
}

// databases are the files of users and groups, and what stands for them in a machine that has none.
var databases = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"etc/group":  "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
}

func regular(content string) fuse.Entry {
	return fuse.Entry{Mode: unix.S_IFREG | 0o644, Content: []byte(content)}
}

func (t *tree) own(f *os.File) { t.sources = append(t.sources, f) }

func (t *tree) close() { closeAll(t.sources...) }

// mountDir makes up a directory and mounts on it.
func (t *tree) mountDir(target string, m ns.Mount) {
	t.extra[target] = fuse.Entry{Mode: unix.S_IFDIR | 0o755}
	m.Target = target
	t.mounts = append(t.mounts, m)
}

// openIn opens something of the machine that has the given type (S_IFDIR, S_IFREG); nil if the machine
// has no such thing.
func (t *tree) openIn(root *ns.Root, path string, kind uint32) (*os.File, error) {
	f, err := root.Open(path)
	// ELOOP: a symbolic link into procfs, which is not followed. EACCES: a place where the machine's own root has no
	// right to be. A machine's own affair.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		closeAll(f)
		return nil, fmt.Errorf("examining the machine's %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != kind {
		closeAll(f)
		return nil, nil
	}
	t.own(f)
	return f, nil
}

// proc takes the machine's /proc, with all that is masked there, if it really is one and shows the machine's processes.
func (t *tree) proc(root *ns.Root, leader int) error {
	proc, err := t.openIn(root, "/proc", unix.S_IFDIR)
	if err != nil {
		return err
	}
	if proc != nil && hasType(proc, unix.PROC_SUPER_MAGIC) {
		its, err := ns.ShowsProcesses(proc, leader)
		if err != nil {
			return err
		}
		if its {
			t.mountDir("proc", ns.Mount{Source: proc})
			return nil
		}
	}
	t.mountDir("proc", ns.Mount{Type: "proc"})
	return nil
}

// private gives the session a directory in memory that only the command's user may enter.
func (t *tree) private(owner uint32) error {
	dir, err := ns.MountMemory("700", owner, t.label)
	if err != nil {
		return err
	}
	t.own(dir)
	t.mountDir(privateDir, ns.Mount{Source: dir, Detached: true})
	return nil
}

func (t *tree) sys(root *ns.Root) error {
	sys, err := t.openIn(root, "/sys", unix.S_IFDIR)
	if err != nil {
		return err
	}
	if sys != nil && (hasType(sys, unix.SYSFS_MAGIC) || hasType(sys, unix.TMPFS_MAGIC)) {
		t.mountDir("sys", ns.Mount{Source: sys})
	} else {
		t.mountDir("sys", ns.Mount{Type: "sysfs"})
	}
	return nil
}

// dev takes the machine's /dev if its null is the null device (CVE-2025-31133) and it has a place for
// terminals; else the session gets a small one of its own.
func (t *tree) dev(root *ns.Root) error {
	dev, err := t.openIn(root, "/dev", unix.S_IFDIR)
	if err != nil {
		return err
	}
	if dev != nil {
		var null unix.Stat_t
		errNull := unix.Fstatat(int(dev.Fd()), "null", &null, unix.AT_SYMLINK_NOFOLLOW)
		var pts unix.Stat_t
		errPts := unix.Fstatat(int(dev.Fd()), "pts", &pts, unix.AT_SYMLINK_NOFOLLOW)
		if errNull == nil && null.Mode&unix.S_IFMT == unix.S_IFCHR && null.Rdev == unix.Mkdev(1, 3) &&
			errPts == nil && pts.Mode&unix.S_IFMT == unix.S_IFDIR {
			t.mountDir("dev", ns.Mount{Source: dev})
			return nil
		}
	}
	own, err := ns.MountDevices(t.label)
	if err != nil {
		return err
	}
	t.own(own)
	t.mountDir("dev", ns.Mount{Source: own, Detached: true})
	return nil
}

// scratch takes a directory of the machine that tools want to write to. A machine that has none, or one
// that is read-only, is not changed: the session gets an empty one of its own.
func (t *tree) scratch(root *ns.Root, name, mode string) error {
	dir, err := t.openIn(root, "/"+name, unix.S_IFDIR)
	if err != nil {
		return err
	}
	if dir != nil {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(dir.Fd()), &st); err == nil && st.Flags&unix.ST_RDONLY == 0 {
			t.mountDir(name, ns.Mount{Source: dir})
			return nil
		}
	}
	own, err := ns.MountMemory(mode, 0, t.label)
	if err != nil {
		return err
	}
	t.own(own)
	t.mountDir(name, ns.Mount{Source: own, Detached: true})
	return nil
}

// file takes a file of the machine. It is mounted, not linked to: a link would be followed in the
// session's tree, and a machine must not choose what of that is read.
func (t *tree) file(root *ns.Root, name string, standIn fuse.Entry) error {
	f, err := t.openIn(root, "/"+name, unix.S_IFREG)
	if err != nil {
		return err
	}
	if f == nil {
		t.extra[name] = standIn
		return nil
	}
	t.extra[name] = regular("")
	t.mounts = append(t.mounts, ns.Mount{Target: name, Source: f})
	return nil
}

// database makes up a file of users or groups: the machine's, and after that what only the tools tree has of
// system users, for tools that want to be somebody of their own: tcpdump is "tcpdump" once it listens.
func (t *tree) database(root, tools image.Looks, name, standIn string) (fuse.Entry, error) {
	own, err := readDatabase(root, "/"+name)
	if err != nil {
		return fuse.Entry{}, err
	}
	if own == "" {
		own = standIn
	}
	theirs, err := readDatabase(tools, "/"+name)
	if err != nil {
		return fuse.Entry{}, err
	}
	return regular(withSystemUsers(own, theirs)), nil
}

func hasType(f *os.File, magic int64) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && int64(st.Type) == magic
}

// promptName returns a machine's name as it can stand in a shell's prompt, where some characters would
// be commands.
func promptName(machine string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-_.:@", r):
			return r
		}
		return '_'
	}, machine)
}
