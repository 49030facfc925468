package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// format is a type of file system that a disk image can have.
type format struct {
	name    string // the kernel's
	magic   string
	at      int64    // where the magic is
	options []string // so that nothing is to be written, a journal replayed for one
}

var formats = []format{
	{"squashfs", "hsqs", 0, nil},
	{"erofs", "\xe2\xe1\xf5\xe0", 1024, nil},
	{"ext4", "\x53\xef", 1080, []string{"noload"}}, // ext2 and ext3 as well
	{"xfs", "XFSB", 0, []string{"norecovery", "nouuid"}},
	{"btrfs", "_BHRfS_M", 0x10040, []string{"rescue=nologreplay"}},
}

// probe finds out where on a disk the root file system is, and of what type it is.
func probe(disk io.ReaderAt, size uint64) (d layout, err error) {
	d.root.span = span{0, size}
	var ok bool
	if d.format, ok = formatOf(disk, 0); ok {
		return d, nil
	}
	table, err := parseGPT(disk, size)
	if err != nil {
		return d, err
	}
	if table == nil {
		return d, errors.New("it is neither a partition table nor a file system, which are " + known())
	}
	if d.root, err = rootOf(table); err != nil {
		return d, err
	}
	if d.hashes, err = onlyOf(table, verityTypes[runtime.GOARCH]); err != nil {
		return d, err
	}
	if d.signature, err = onlyOf(table, signatureTypes[runtime.GOARCH]); err != nil {
		return d, err
	}
	if d.format, ok = formatOf(disk, int64(d.root.offset)); !ok {
		return d, errors.New("what is on its root partition is none of " + known())
	}
	return d, nil
}

func formatOf(disk io.ReaderAt, start int64) (format, bool) {
	for _, f := range formats {
		b := make([]byte, len(f.magic))
		if _, err := disk.ReadAt(b, start+f.at); err == nil && string(b) == f.magic {
			return f, true
		}
	}
	return format{}, false
}

func known() string {
	var names []string
	for _, f := range formats {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

// openDisk mounts a disk image, read-only, where nobody else sees it. The kernel's file systems are not made for images of
// enemies. So it takes root to use any image; others can use those only that nobody but root can have changed.
func openDisk(i *Image, at *os.File, owner uint32, opener ns.Identity) (*Tree, error) {
	if !opener.Root() {
		if err := rootsOwn(at); err != nil {
			return nil, fail.New(fail.AccessDenied, "only root may use others", "the disk image %q is not root's alone: %w", i, err)
		}
	}
	var file *os.File
	err := opener.As(func() (err error) {
		// The very file that was looked at.
		file, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, explain(i, err)
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("examining the image %q: %w", i, err)
	}
	d, err := probe(file, uint64(size))
	if err != nil {
		return nil, fail.New(fail.NoSuchImage, "file(1) tells what it is", "%q is no image: %w", i.Path, err)
	}
	v, err := findVerity(i, file, d, opener)
	if err != nil {
		return nil, fail.New(fail.NoSuchImage, "veritysetup dump tells of verity data", "the image %q: %w", i, err)
	}
	device, err := attach(i, file, d, v)
	if err != nil {
		return nil, fmt.Errorf("the image %q: %w", i, err)
	}
	defer device.Close() // the mount keeps it, and it clears itself when that goes
	f := d.format
	root, err := ns.MountDisk(f.name, device, f.options...)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, fail.New(fail.NotSupported, "load it with modprobe "+f.name, "the image %q is %s, which this kernel does not have", i, f.name)
	case err != nil:
		return nil, fail.New(fail.NoSuchImage, "it may be damaged; dmesg may tell more", "%q cannot be mounted as %s: %w", i.Path, f.name, err)
	}
	var top unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &top); err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("examining the image %q: %w", i, err)
	}
	ids := idsOf(top.Uid, top.Gid)
	return &Tree{
		Root: root, UIDs: ids, GIDs: ids, ReadOnly: true, Immutable: true, SetID: opener.Root() && owner == 0,
	}, nil
}

// attach returns a device of the root file system, the blocks of which are verified if there is something to do it with.
func attach(i *Image, file *os.File, d layout, v *verity) (*os.File, error) {
	if v == nil {
		return attachLoop(file, i.Path, d.root.span)
	}
	defer v.close(file)
	data, err := attachLoop(file, i.Path, d.root.span)
	if err != nil {
		return nil, err
	}
	defer data.Close() // the device keeps it
	return v.attach(data, i.Path)
}

// rootsOwn reports why somebody else than root could have changed a file, or put another in its place: nil if it and all
// directories on the way to it are root's, and nobody else may write to them.
func rootsOwn(at *os.File) error {
	// Where it really is, without links; resolved again step by step, and then compared.
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if err != nil {
		return err
	}
	dir, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	names := strings.Split(strings.TrimPrefix(path, "/"), "/")
	so := ""
	for n := 0; ; n++ {
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			_ = dir.Close()
			return err
		}
		if st.Uid != 0 || st.Mode&0o022 != 0 {
			_ = dir.Close()
			return fmt.Errorf("others may write to /%s", so)
		}
		if n == len(names) {
			defer dir.Close()
			var want unix.Stat_t
			if err := unix.Fstat(int(at.Fd()), &want); err != nil || want.Dev != st.Dev || want.Ino != st.Ino {
				return errors.New("it was moved meanwhile")
			}
			return nil
		}
		fd, err := unix.Openat(int(dir.Fd()), names[n], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		_ = dir.Close()
		if err != nil {
			return errors.New("it was moved meanwhile")
		}
		dir = os.NewFile(uintptr(fd), names[n])
		so = strings.Join(names[:n+1], "/")
	}
}
