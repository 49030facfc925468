package image

import (
	"path"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// Ref is what a user typed to name an image. The zero value is the host; else one of its fields is set.
type Ref struct {
	Path    string // absolute and clean
	OCI     string // what is at Path, if that is an OCI image: oci.Layout and its siblings
	Tag     string // which of several OCI images
	Name    string // known to machined
	Machine string // a running machine, by its name or typed name
}

// host is the name of the host as an image.
const host = "host"

// anyMachine is the kind of "machine:NAME": whatever has the name.
const anyMachine = "machine"

// ParseRef parses "host", "/PATH", "NAME", "KIND:NAME", and for OCI images "oci:/PATH[:TAG]" and its siblings (containers-transports(5)). "" is the host, too.
func ParseRef(s string) (Ref, error) {
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return Ref{}, fail.New(fail.InvalidArgument, "an image's name has no control character", "invalid image %q", s)
		}
	}
	kind, name, typed := strings.Cut(s, ":")
	switch {
	case s == "" || s == host:
		return Ref{}, nil
	case strings.HasPrefix(s, "/"):
		return Ref{Path: path.Clean(s)}, nil
	case typed && oci.IsKind(kind):
		return parseOCI(kind, name)
	case kind == "docker" && strings.HasPrefix(name, "//"):
		return Ref{}, fail.New(fail.InvalidArgument, "cntrctl import "+s+" brings it here",
			"the image %q is in a registry", s)
	case strings.Contains(s, "/"):
		return Ref{}, fail.New(fail.InvalidArgument, "give an absolute path", "invalid image %q: it is no absolute path", s)
	case !typed:
		return Ref{Name: s}, nil
	case kind == "" || name == "":
		return Ref{}, fail.New(fail.InvalidArgument, "a machine is KIND:NAME, as in docker:tools, or machine:NAME", "invalid image %q", s)
	case kind == anyMachine:
		return Ref{Machine: name}, nil
	}
	return Ref{Machine: s}, nil
}

func parseOCI(kind, name string) (Ref, error) {
	r := Ref{OCI: kind, Path: name}
	// The tag of an archive of docker save is a name with a tag.
	if at := strings.IndexByte(name, ':'); at >= 0 {
		r.Path, r.Tag = name[:at], name[at+1:]
	}
	if !strings.HasPrefix(r.Path, "/") || strings.HasSuffix(name, ":") {
		return Ref{}, fail.New(fail.InvalidArgument, "give an absolute path, as in "+kind+":/srv/tools:latest", "invalid image %q", kind+":"+name)
	}
	r.Path = path.Clean(r.Path)
	return r, nil
}

// IsHost reports whether it is the host.
func (r Ref) IsHost() bool { return r == Ref{} }

// String returns what [ParseRef] would parse.
func (r Ref) String() string {
	switch {
	case r.IsHost():
		return host
	case r.Machine != "" && !strings.Contains(r.Machine, ":"):
		return anyMachine + ":" + r.Machine
	case r.OCI != "" && r.Tag != "":
		return r.OCI + ":" + r.Path + ":" + r.Tag
	case r.OCI != "":
		return r.OCI + ":" + r.Path
	}
	return r.Path + r.Name + r.Machine
}
