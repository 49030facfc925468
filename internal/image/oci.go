package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// openOCI opens an OCI image. Its files are opened with the opener's rights, and what is found out of it is kept for
// that opener alone.
func openOCI(i *Image, opener ns.Identity) (*Tree, error) {
	setID := opener.Root()
	open := func(path string) (*os.File, error) {
		f, owner, err := openRegular(path, opener)
		// The blobs are known by their digests: who owns the file that these come from decides what they are.
		if err == nil && owner != 0 && !strings.HasPrefix(path, filepath.Join(i.Path, "blobs")+"/") {
			setID = false
		}
		return f, err
	}
	cache, err := oci.UserCache(opener.UID)
	if err != nil {
		return nil, fail.New(fail.NotSupported, "is "+oci.CacheDir+" writable?", "there is no place to keep parts of the image %q: %w", i, err)
	}
	files, err := oci.Load(i.OCI, i.Path, i.Tag, open, cache)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fail.New(fail.AccessDenied, "images are opened with the rights of who attaches", "you may not open the image %q", i)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail.New(fail.NoSuchImage, "it is oci:DIRECTORY, oci-archive:FILE or docker-archive:FILE", "there is no image %q: %w", i, err)
	case err != nil:
		return nil, fail.New(fail.NoSuchImage, "skopeo inspect may tell more", "%q is no image that can be used: %w", i, err)
	}
	var env []string
	for _, v := range files.Environ {
		if name, _, ok := strings.Cut(v, "="); ok && isName(name) && strings.IndexByte(v, 0) < 0 {
			env = append(env, v)
		}
	}
	return &Tree{
		Files: files, ReadOnly: true, Immutable: true, SetID: setID, UIDs: identity, GIDs: identity, Environ: env,
	}, nil
}

// openRegular opens a regular file with somebody's rights, and tells its owner. Nothing else is opened: not even a FIFO.
func openRegular(path string, who ns.Identity) (f *os.File, owner uint32, err error) {
	at, err := openAs(path, who)
	if err != nil {
		return nil, 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &st); err != nil {
		return nil, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, 0, fmt.Errorf("%q is no regular file", path)
	}
	err = who.As(func() (err error) {
		f, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
		return err
	})
	return f, st.Uid, err
}
