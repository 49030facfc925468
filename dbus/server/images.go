package server

import (
	"context"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// imageRow is a row of ListImages.
type imageRow struct{ Name, Type, Path string }

// listImages returns what can be a tools tree by name. Running machines can be, too, and are in another list.
func (s *server) listImages(ctx context.Context, _ caller, _ *message) ([]any, error) {
	list, err := s.Images.List(ctx)
	if err != nil {
		s.Log.Warn("Some images cannot be listed", "error", err)
	}
	rows := []imageRow{}
	for _, i := range list {
		rows = append(rows, imageRow{clean(i.Name), clean(i.Type), clean(i.Path)})
	}
	return []any{rows}, nil
}

// findImage finds the image of an attach. The caller of findImage closes it. No file is looked at here: the session
// process opens the image with the rights of whom it is for. A machine is an image for those who may have a session in
// it: they could read its files there. An image that root has configured needs no right, and is opened as root.
func (s *server) findImage(ctx context.Context, who caller, spec *attachSpec) (*image.Image, error) {
	ctx, cancel := renewed(ctx)
	defer cancel()
	ref := spec.image
	if spec.wrong != nil {
		return nil, spec.wrong
	}
	if spec.configured {
		return s.configuredImage(ctx, ref)
	}
	if ref.Machine != "" {
		m, _, err := s.find(ctx, who, ref.Machine, spec)
		if err != nil {
			return nil, err
		}
		return image.OfMachine(m), nil
	}
	i, err := s.Images.Find(ctx, ref)
	if fail.Is(err, fail.NoSuchImage) && !who.trusted() && s.authorize(ctx, who.quiet(), actionInspect, nil) != nil {
		return nil, fail.New(fail.NoSuchImage, "", "no image is called %q", ref) // the hint tells of others
	}
	return i, err
}

func (s *server) configuredImage(ctx context.Context, ref image.Ref) (i *image.Image, err error) {
	if ref.Machine != "" {
		var m *machine.Machine
		if m, _, err = s.Machines.Find(ctx, ref.Machine); err == nil {
			i = image.OfMachine(m)
		}
	} else {
		i, err = s.Images.Find(ctx, ref)
	}
	if err != nil {
		return nil, fail.New(fail.From(err).Code, "see man attach.conf; --image=host does without it",
			"the configured image %q: %w", ref, err)
	}
	if i != nil {
		i.Trusted = true
	}
	return i, nil
}

// choose fills in the image that is configured for a machine, if the caller has named none.
func (s *server) choose(spec *attachSpec, m *machine.Machine) {
	if spec.chosen || s.Default == nil {
		return
	}
	spec.image, spec.wrong = s.Default(m)
	spec.chosen, spec.configured = true, true
}
