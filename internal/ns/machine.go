package ns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Namespaces is a set of CLONE_NEW* flags.
type Namespaces uintptr

// kinds are the namespaces that there are, by their name in /proc/PID/ns (namespaces(7)).
var kinds = []struct {
	name string
	flag Namespaces
}{
	{"user", unix.CLONE_NEWUSER},
	{"mnt", unix.CLONE_NEWNS},
	{"pid", unix.CLONE_NEWPID},
	{"net", unix.CLONE_NEWNET},
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"time", unix.CLONE_NEWTIME},
}

// Differing returns the namespaces in which process pid is and the caller is not. A kind that this
// kernel does not have is not among them.
func Differing(pid int) (Namespaces, error) {
	var differ Namespaces
	for _, k := range kinds {
		own, err := os.Readlink("/proc/self/ns/" + k.name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, k.name))
		if err != nil {
			return 0, err
		}
		if own != its {
			differ |= k.flag
		}
	}
	return differ, nil
}

// MountNamespace returns the identity of the mount namespace of a process or thread, "mnt:[4026531841]".
func MountNamespace(pid int) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
}

// Range is a run of ids: Count ids from Inside on are, in the initial user namespace of the reader,
// those from Outside on.
type Range struct{ Inside, Outside, Count uint32 }

// IDMaps returns the uid and gid maps of process pid's user namespace (user_namespaces(7)).
func IDMaps(pid int) (uids, gids []Range, err error) {
	if uids, err = idMap(fmt.Sprintf("/proc/%d/uid_map", pid)); err != nil {
		return nil, nil, err
	}
	gids, err = idMap(fmt.Sprintf("/proc/%d/gid_map", pid))
	return uids, gids, err
}

func idMap(path string) ([]Range, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	ranges, err := parseIDMap(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ranges, nil
}

func parseIDMap(data []byte) ([]Range, error) {
	var ranges []Range
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("not an id map: %q", line)
		}
		var n [3]uint32
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("not an id map: %w", err)
			}
			n[i] = uint32(v)
		}
		ranges = append(ranges, Range{n[0], n[1], n[2]})
	}
	return ranges, nil
}

// Root is a root directory: a machine's, as its leader sees it, or that of the tools.
type Root struct {
	dir *os.File
	who Identity // who looks around in it
}

// RootAt makes a directory, opened O_PATH, a root that somebody looks around in. The Root owns it.
func RootAt(dir *os.File, who Identity) *Root { return &Root{dir: dir, who: who} }

// OpenRoot opens the root directory of process pid.
func OpenRoot(pid int) (*Root, error) {
	path := fmt.Sprintf("/proc/%d/root", pid)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the root directory %q: %w", path, err)
	}
	return &Root{dir: os.NewFile(uintptr(fd), "/")}, nil
}

// As makes all that is opened from now on be opened with the rights of somebody of the host. In a machine that a
// user made, mounts and symbolic links lead to whatever the user wants, files and directories that they have no
// right to included: it is looked at with the rights of its own root.
func (r *Root) As(uid, gid uint32) { r.who = Identity{UID: uid, GID: gid} }

// Dir returns the root directory itself, which stays the Root's.
func (r *Root) Dir() *os.File { return r.dir }

// Close closes the root directory.
func (r *Root) Close() error { return r.dir.Close() }

// Open returns an O_PATH descriptor of what path names in the machine, owned by the caller. Symbolic
// links are followed as the machine would follow them and cannot lead out of its root; links of procfs
// are not followed (openat2(2), Linux 5.6).
func (r *Root) Open(path string) (*os.File, error) { return r.open(path, 0) }

// Exists reports whether a path leads to something.
func (r *Root) Exists(path string) bool {
	f, err := r.Open(path)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// Readlink returns the target of a symbolic link of the machine.
func (r *Root) Readlink(path string) (string, error) {
	link, err := r.open(path, unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer link.Close()
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(int(link.Fd()), "", b[:])
	if err != nil {
		return "", &os.PathError{Op: "readlink below the root", Path: path, Err: err}
	}
	return string(b[:n]), nil
}

func (r *Root) open(path string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd := -1
		err := r.who.As(func() (err error) {
			fd, err = unix.Openat2(int(r.dir.Fd()), path, &how)
			return err
		})
		if errors.Is(err, unix.EAGAIN) {
			continue // something was renamed meanwhile: the kernel could not tell whether it led out
		}
		if err != nil {
			return nil, &os.PathError{Op: "open below the root", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// ReadFile reads a regular file of the machine, of at most limit bytes.
func (r *Root) ReadFile(path string, limit int64) ([]byte, error) {
	at, err := r.Open(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if info, err := at.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read below the root", Path: path, Err: unix.EINVAL}
	}
	// The descriptor says which file it is; the file is opened through it, so it is the one just checked.
	var f *os.File
	err = r.who.As(func() (err error) {
		f, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &os.PathError{Op: "read below the root", Path: path, Err: unix.EFBIG}
	}
	return data, err
}
