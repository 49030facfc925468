package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/oci"
	"github.com/cntr-attach/cntr-attach/internal/registry"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// importImage brings an image into the caller's store. It needs no service.
func importImage(ctx context.Context, o *options, _ *dbus.Client) error {
	from := o.args[0]
	store, err := userStore()
	if err != nil {
		return err
	}
	ref, name, err := named(from)
	if err != nil {
		return err
	}
	if len(o.args) > 1 {
		name = o.args[1]
	} else if other, found, err := store.Find(func(i oci.Imported) bool { return i.Name == name && i.Source != from }); found || err != nil {
		if err != nil {
			return err
		}
		return fail.New(fail.InvalidArgument, "cntrctl import "+from+" NAME gives it another", "the image %q is another, of %s", name, other.Source)
	}
	if err := oci.CheckName(name); err != nil {
		return fail.New(fail.InvalidArgument, "cntrctl import "+from+" NAME gives it one", "%w", err)
	}
	if store.Path == oci.SystemStore {
		unix.Umask(0o022) // everybody may have it
	}
	source, err := open(ctx, from, ref)
	if err != nil {
		return explain(from, err)
	}
	defer source.Close()
	bar := &progress{name: name, w: io.Discard}
	if st, err := os.Stderr.Stat(); err == nil && st.Mode()&fs.ModeCharDevice != 0 {
		bar.w = os.Stderr
	}
	err = store.Import(ctx, name, from, source, bar.tell)
	bar.end()
	if err != nil {
		return explain(from, err)
	}
	if err := examine(store, name, from); err != nil {
		return err
	}
	fmt.Printf("imported as %s\n", name)
	return nil
}

// examine looks into an image that root has imported, as the first session would have to: that one needs not wait for it then. An
// image that cannot be used does not stay. Others have no cache to write to.
func examine(store oci.Store, name, from string) error {
	if store.Path != oci.SystemStore {
		return nil
	}
	cache, err := oci.UserCache(0)
	if err != nil {
		return err
	}
	i, err := oci.Load(oci.Layout, store.Path, name, oci.OpenAsUs, cache)
	if err != nil {
		return explain(from, errors.Join(err, store.Remove(name)))
	}
	return i.Close()
}

// userStore is the store of whom this command is of.
func userStore() (oci.Store, error) {
	store, err := oci.UserStore()
	if err != nil {
		return store, fail.New(fail.NotSupported, "set HOME", "%w", err)
	}
	return store, nil
}

// named takes the name of what is to be imported apart, and says how it is called if nobody says more.
func named(from string) (ref image.Ref, name string, err error) {
	if strings.HasPrefix(from, oci.Registry) {
		if name, err = registry.Default(from); err != nil {
			err = fail.New(fail.InvalidArgument, "it is docker://HOST/NAME:TAG", "%w", err)
		}
		return ref, name, err
	}
	ref, err = image.ParseRef(from)
	if err == nil && ref.OCI == "" {
		err = fail.New(fail.InvalidArgument, "it is docker://NAME, oci:DIRECTORY, oci-archive:FILE or docker-archive:FILE",
			"%q cannot be imported", from)
	}
	return ref, strings.TrimSuffix(filepath.Base(ref.Path), ".tar"), err
}

func open(ctx context.Context, from string, ref image.Ref) (oci.Source, error) {
	if ref.OCI == "" {
		return registry.Open(ctx, from)
	}
	return oci.OpenSource(ref.OCI, ref.Path, ref.Tag)
}

func explain(from string, err error) error {
	for _, known := range []struct {
		is   error
		code fail.Code
		hint string
	}{
		{registry.ErrDenied, fail.AccessDenied, "podman login and docker login note credentials"},
		{registry.ErrPolicy, fail.AccessDenied, "see man containers-policy.json; skopeo copy verifies signatures, and what it has copied can be imported"},
		{registry.ErrBlocked, fail.AccessDenied, "see man containers-registries.conf"},
		{oci.ErrBusy, fail.LimitsExceeded, "try again when it has ended"},
		{unix.ENOSPC, fail.LimitsExceeded, "cntrctl remove makes room"},
		{context.Canceled, fail.Internal, "the next import goes on where this one was"},
		{fs.ErrPermission, fail.AccessDenied, ""},
		{fs.ErrNotExist, fail.NoSuchImage, ""},
	} {
		if errors.Is(err, known.is) {
			return fail.New(known.code, known.hint, "importing %s: %w", from, err)
		}
	}
	return fail.New(fail.NoSuchImage, "", "importing %s: %w", from, err)
}

// removeImages removes images from the caller's store.
func removeImages(_ context.Context, o *options, _ *dbus.Client) error {
	store, err := userStore()
	if err != nil {
		return err
	}
	return o.each(func(name string) error {
		err := store.Remove(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fail.New(fail.NoSuchImage, "cntrctl images shows them", "no image was imported as %q", name)
		case errors.Is(err, oci.ErrBusy):
			return fail.New(fail.LimitsExceeded, "try again when it has ended", "removing %s: %w", name, err)
		}
		return err
	})
}

// progress tells on a terminal how far an import is.
type progress struct {
	name  string
	w     io.Writer
	shown time.Time
}

func (p *progress) tell(done, total int64) {
	const often = 100 * time.Millisecond
	if now := time.Now(); now.Sub(p.shown) >= often || done == total {
		p.shown = now
		fmt.Fprintf(p.w, "\r%s: %3d%% of %s\x1b[K", p.name, 100*done/max(total, 1), status.Bytes(uint64(total)))
	}
}

// end leaves the line to what comes next.
func (p *progress) end() {
	if !p.shown.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
