// Package image says what can be a tools tree: what a session has at "/" in place of the host.
//
// There are two steps, which different processes take. A [Finder], in the service or in a command that does without
// it, makes an [Image] of a name: it asks machined, or finds a running machine, but looks at no file. [Open] is
// for the session process. It makes a [Tree] of an image: an open root directory, and what there is to know of it.
//
// # Whose rights
//
// Users who are not root name paths, and must not learn or reach by that what they could not before. So a path is
// resolved with their rights, and so is all that is read below it; it is the file system of the session that then
// acts as them, on an image as on the host. The exception is an image that root's configuration names.
// For a file system image the kernel's own parser of it is what protects the host: users can use those that only root
// could have made, see rootsOwn.
//
// Set-id bits and file capabilities of an image count only if it is root's in every respect, see [Tree.SetID].
package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// Image is what a name stands for. It has not been looked at.
type Image struct {
	Name    string           // as it is called: "host", "tools", "/srv/tools", "docker:tools"
	Path    string           // a directory or file of the host, absolute
	OCI     string           // what is there, if it is an OCI image: oci.Layout and its siblings
	Tag     string           // which of several OCI images
	Machine *machine.Machine // or a running machine; owned by the Image
	Trusted bool             // root's configuration names it: it is opened as root, whoever the session is for
}

// Close lets go of the machine.
func (i *Image) Close() error {
	if i == nil || i.Machine == nil {
		return nil
	}
	return i.Machine.Close()
}

// IsHost reports whether it is the host. A nil Image is.
func (i *Image) IsHost() bool { return i == nil || i.Path == "" && i.Machine == nil }

// OpenLimit bounds how long [Open] may take: a disk may be slow, and a file system may not answer. An OCI image is read as a
// whole the first time.
func (i *Image) OpenLimit() time.Duration {
	if i != nil && i.OCI != "" {
		return 15 * time.Minute
	}
	return 10 * time.Second
}

// String returns its name.
func (i *Image) String() string {
	if i == nil {
		return host
	}
	return i.Name
}

// OfMachine makes a machine an image. It takes the machine over.
func OfMachine(m *machine.Machine) *Image { return &Image{Name: m.Ref(), Machine: m} }

// Store knows images by name: machined's. An imported image comes first, and needs no machined.
type Store interface {
	// Image finds one. Errors carry fail.NoSuchImage where that is it.
	Image(ctx context.Context, name string) (machine.ImageInfo, error)
	Images(ctx context.Context) ([]machine.ImageInfo, error)
}

// Finder makes images of names.
type Finder struct {
	Store
	Imported oci.Store // images that were imported; the zero value is the system's
}

func (f Finder) imported() oci.Store {
	if f.Imported.Path == "" {
		return oci.Store{Path: oci.SystemStore}
	}
	return f.Imported
}

// Find finds the image that r names, which is no machine. An unknown name is fail.NoSuchImage with the nearest
// names as hint; whether a path leads anywhere is for [Open] to find out.
func (f Finder) Find(ctx context.Context, r Ref) (*Image, error) {
	switch {
	case r.IsHost():
		return nil, nil
	case r.Path != "":
		return &Image{Name: r.String(), Path: r.Path, OCI: r.OCI, Tag: r.Tag}, nil
	case r.Machine != "":
		return nil, fmt.Errorf("the machine %q as an image", r.Machine)
	}
	store := f.imported()
	_, found, err := store.Find(func(i oci.Imported) bool { return i.Name == r.Name })
	if err != nil {
		return nil, err
	}
	if found {
		return &Image{Name: r.Name, Path: store.Path, OCI: oci.Layout, Tag: r.Name}, nil
	}
	info, err := f.Image(ctx, r.Name)
	if fail.Is(err, fail.NoSuchImage) {
		return nil, fail.New(fail.NoSuchImage, f.hint(ctx, r.Name), "no image is called %q", r.Name)
	}
	if err != nil {
		return nil, err
	}
	return &Image{Name: info.Name, Path: info.Path}, nil
}

// Row is an image in a list.
type Row struct{ Name, Type, Path string }

// List returns the host and the images that have names, with an error if those could not be had.
func (f Finder) List(ctx context.Context) ([]Row, error) {
	rows := []Row{{host, host, "/"}}
	imported, failed := f.imported().List()
	for _, i := range imported {
		rows = append(rows, Row{i.Name, oci.Layout, f.imported().Path})
	}
	list, err := f.Images(ctx)
	for _, i := range list {
		rows = append(rows, Row{i.Name, i.Type, i.Path})
	}
	return rows, errors.Join(failed, err)
}

// hint names the images that come nearest to a name.
func (f Finder) hint(ctx context.Context, name string) string {
	rows, _ := f.List(ctx) // what failed is no help here
	var names []string
	for _, r := range rows {
		names = append(names, r.Name)
	}
	if near := machine.Nearest(name, names); len(near) > 0 {
		return "did you mean " + near[0] + "?"
	}
	return "cntrctl images lists them; a path begins with /, a machine is docker:NAME or machine:NAME"
}
