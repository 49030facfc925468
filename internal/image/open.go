package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/ns"
	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// Tree is an image that was opened.
type Tree struct {
	Root      *os.File   // its root directory, opened O_PATH; owned by the Tree; nil with Files
	Files     *oci.Image // in place of Root; owned by the Tree
	Looks     Looks      // the same, for reading single files as whom the session is for; it has no descriptor of its own
	ReadOnly  bool       // it cannot be written to
	Immutable bool       // nobody else changes it either
	SetID     bool       // its set-id bits and file capabilities count
	UIDs      []ns.Range // of the ids of its files: Inside as its own users have them, Outside as they are on the host
	GIDs      []ns.Range
	Environ   []string // its own variables, NAME=VALUE; none of the host
}

// Looks reads single files of a tree. Links lead to where they lead with the tree as root directory.
type Looks interface {
	ReadFile(path string, limit int64) ([]byte, error) // a regular file of at most limit bytes
	Exists(path string) bool
}

// Close closes the root directory.
func (t *Tree) Close() error {
	if t.Files != nil {
		return t.Files.Close()
	}
	return t.Root.Close()
}

// identity is the map of ids that are the host's.
var identity = []ns.Range{{Count: 1<<32 - 1}}

// Open opens an image for somebody. It may block for as long as a file system does. Errors carry fail.NoSuchImage (there
// is none at this path, or it cannot be a tools tree), fail.AccessDenied, fail.NotRunning or fail.NotSupported.
func Open(i *Image, who ns.Identity) (t *Tree, err error) {
	if i.IsHost() {
		root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		return &Tree{Root: root, Looks: ns.RootAt(root, ns.Identity{}), SetID: true, UIDs: identity, GIDs: identity}, nil
	}
	opener := who
	if i.Trusted {
		opener = ns.Identity{}
	}
	switch {
	case i.Machine != nil:
		t, err = openMachine(i.Machine)
	case i.OCI != "":
		if t, err = openOCI(i, opener); err == nil && i.Trusted && !who.Root() {
			t.Files.Restrict(who.UID, who.GID, who.Groups)
		}
	default:
		t, err = openPath(i, opener)
	}
	if err != nil {
		return nil, err
	}
	if t.Looks = t.Files; t.Files == nil {
		t.Looks = ns.RootAt(t.Root, who)
	}
	text, err := t.Looks.ReadFile("/etc/environment", environLimit)
	if err == nil {
		t.Environ = append(parseEnviron(string(text)), t.Environ...)
	}
	if i.Machine != nil && !i.Machine.Leader.Alive() {
		_ = t.Close()
		return nil, stopped(i.Machine)
	}
	return t, nil
}

func openPath(i *Image, opener ns.Identity) (*Tree, error) {
	f, err := openAs(i.Path, opener)
	if err != nil {
		return nil, explain(i, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("examining the image %q: %w", i, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG, unix.S_IFBLK:
		defer f.Close()
		return openDisk(i, f, st.Uid, opener)
	default:
		_ = f.Close()
		return nil, fail.New(fail.NoSuchImage, "an image is a directory that has usr, bin and etc in it, or a disk image",
			"%q is no image: it is neither a directory nor a file", i.Path)
	}
	return &Tree{
		Root: f, UIDs: idsOf(st.Uid, st.Gid), GIDs: idsOf(st.Uid, st.Gid),
		// A directory that somebody else made may have anybody's programs in it.
		SetID: opener.Root() && st.Uid == 0,
	}, nil
}

// idsOf returns the map of ids of an image by the owner of its root directory. Container managers give a container that
// has a user namespace a run of 65536 ids, of which the first is its root's, and with some the files on disk have these
// ids: systemd-nspawn(1), --private-users-ownership=chown, and lxc-usernsexec(1). That first id is beyond those of people.
func idsOf(uid, gid uint32) []ns.Range {
	const run = 1 << 16
	if uid != gid || uid < run || uid > 1<<32-1-run {
		return identity
	}
	return []ns.Range{{Outside: uid, Count: run}}
}

// openAs opens a path with somebody's rights, O_PATH. Links of procfs are not followed: they lead where their
// process is, and what is looked at then is whether we may ptrace that.
func openAs(path string, who ns.Identity) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	fd := -1
	err := who.As(func() (err error) {
		fd, err = unix.Openat2(unix.AT_FDCWD, path, &how)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func explain(i *Image, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG):
		return fail.New(fail.NoSuchImage, "cntrctl images lists those that have names", "there is no image at %q", i.Path)
	case errors.Is(err, fs.ErrPermission):
		return fail.New(fail.AccessDenied, "images are opened with the rights of who attaches",
			"you may not open the image at %q", i.Path)
	case errors.Is(err, unix.ELOOP):
		return fail.New(fail.NoSuchImage, "links of /proc are not followed", "%q is no image: its path does not end", i.Path)
	}
	return fmt.Errorf("opening the image %q: %w", i, err)
}

// openMachine takes a machine's root with all its mounts, as its leader sees it.
func openMachine(m *machine.Machine) (*Tree, error) {
	root, err := ns.OpenRoot(m.Leader.PID)
	if err != nil {
		return nil, goneOr(m, err)
	}
	t := &Tree{Root: root.Dir()}
	if t.UIDs, t.GIDs, err = ns.IDMaps(m.Leader.PID); err != nil {
		_ = t.Close()
		return nil, goneOr(m, err)
	}
	return t, nil
}

func goneOr(m *machine.Machine, err error) error {
	if m.Leader.Alive() && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return stopped(m)
}

func stopped(m *machine.Machine) error {
	return fail.New(fail.NotRunning, "", "the machine %q, which is the image, has stopped", m.Ref())
}
