package config

import (
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// DefaultImage reads this host's configuration and returns the image for a machine. Settings that mean nothing are told.
func DefaultImage(m *machine.Machine, tell func(unknown string)) (image.Ref, error) {
	c, err := Load("/")
	if err != nil {
		return image.Ref{}, err
	}
	for _, u := range c.Unknown {
		tell(u)
	}
	ref, err := image.ParseRef(c.Image(m.Kind, m.Name))
	if err != nil {
		return image.Ref{}, unreadable(err)
	}
	return ref, nil
}
