package cli

import (
	"context"
	"os"
	"os/exec"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// findImage finds an image in the caller's own store, which the service does not know of: one that was imported by that name, or
// from the registry that it is in. What is in a registry is imported if it was not yet; cntrctl does that, for what it takes
// is not to be loaded for each session.
func (o *options) findImage(ctx context.Context) error {
	wanted := o.image
	remote := strings.HasPrefix(wanted, oci.Registry)
	if wanted == "" || !remote && (os.Geteuid() == 0 || strings.ContainsAny(wanted, ":/")) {
		return nil
	}
	store, err := oci.UserStore()
	if err != nil {
		if remote {
			return err
		}
		return nil // the service may know it
	}
	is := func(i oci.Imported) bool { return i.Name == wanted || remote && i.Source == wanted }
	found, ok, err := store.Find(is)
	if err != nil {
		return err
	}
	if !ok && !remote {
		return nil
	}
	if !ok {
		o.tell("importing %s, once; cntrctl import brings a newer one", wanted)
		if err := importImage(ctx, wanted); err != nil {
			return err
		}
		if found, ok, err = store.Find(is); err != nil || !ok {
			return fail.New(fail.NoSuchImage, "", "the image %q was imported and is not there", wanted)
		}
	}
	o.image = oci.Layout + ":" + store.Path + ":" + found.Name
	return nil
}

// importImage has cntrctl import an image. It says itself what goes wrong.
func importImage(ctx context.Context, from string) error {
	program, err := Program("cntrctl")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "import", from)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fail.New(fail.NoSuchImage, "cntrctl images lists those that are here", "the image %q cannot be had: %w", from, err)
	}
	return nil
}
