package nspawn

import (
	"context"
	"fmt"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

const imageIface = "org.freedesktop.machine1.Image"

// Image finds an image by the name that machined knows it by, in its search paths (machinectl(1), 'Files and
// directories'). An unknown one is fail.NoSuchImage, without a hint. Like the list of images, this is told to
// anybody on the bus.
func (r *Resolver) Image(ctx context.Context, name string) (machine.ImageInfo, error) {
	none := fail.New(fail.NoSuchImage, "", "machined knows no image %q", name)
	if name == "" || strings.HasPrefix(name, ".") { // ".host"
		return machine.ImageInfo{}, none
	}
	conn, err := r.connect(ctx)
	if err != nil {
		return machine.ImageInfo{}, err
	}
	var path godbus.ObjectPath
	err = call(ctx, conn, managerPath, manager+".GetImage", name).Store(&path)
	switch bus.ErrorName(err) {
	case service + ".NoSuchImage", "org.freedesktop.DBus.Error.InvalidArgs":
		return machine.ImageInfo{}, none
	}
	if err != nil {
		return machine.ImageInfo{}, unavailable(fmt.Errorf("asking machined for the image %q: %w", name, err))
	}
	info, err := imageOf(ctx, conn, path)
	if isGone(err) || bus.ErrorName(err) == service+".NoSuchImage" {
		return machine.ImageInfo{}, none
	}
	if err != nil {
		return machine.ImageInfo{}, unavailable(fmt.Errorf("asking machined about the image %q: %w", name, err))
	}
	return info, nil
}

// Images returns the images that machined knows, sorted by name, but for the host itself.
func (r *Resolver) Images(ctx context.Context) ([]machine.ImageInfo, error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		Name, Type       string
		ReadOnly         bool
		Created, Changed uint64
		Usage            uint64
		Path             godbus.ObjectPath
	}
	if err := call(ctx, conn, managerPath, manager+".ListImages").Store(&rows); err != nil {
		return nil, unavailable(fmt.Errorf("asking machined for its images: %w", err))
	}
	var list []machine.ImageInfo
	for _, row := range rows {
		if strings.HasPrefix(row.Name, ".") {
			continue
		}
		info, err := imageOf(ctx, conn, row.Path)
		if err != nil {
			continue // removed since it was listed
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b machine.ImageInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func imageOf(ctx context.Context, conn *godbus.Conn, path godbus.ObjectPath) (machine.ImageInfo, error) {
	var info machine.ImageInfo
	var all map[string]godbus.Variant
	err := call(ctx, conn, path, "org.freedesktop.DBus.Properties.GetAll", imageIface).Store(&all)
	if err != nil {
		return info, err
	}
	for name, to := range map[string]any{
		"Name": &info.Name, "Type": &info.Type, "Path": &info.Path, "ReadOnly": &info.ReadOnly,
	} {
		if err := all[name].Store(to); err != nil {
			return info, fmt.Errorf("property %s of %s: %w", name, path, err)
		}
	}
	return info, nil
}
