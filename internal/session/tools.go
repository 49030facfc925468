package session

import (
	"os"
	"slices"
	"time"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// requestImage is how a session process is told of an image.
func requestImage(i *image.Image) imageRequest {
	switch {
	case i.IsHost():
		return imageRequest{}
	case i.Machine != nil:
		return imageRequest{Machine: i.Machine.Ref(), Leader: i.Machine.Leader.PID, Trusted: i.Trusted}
	}
	return imageRequest{Path: i.Path, OCI: i.OCI, Tag: i.Tag, Trusted: i.Trusted}
}

func (r imageRequest) isHost() bool { return r == imageRequest{} }

// image is the reverse of requestImage.
func (r *request) image(leader *os.File) *image.Image {
	if r.Image.isHost() {
		return nil
	}
	i := &image.Image{Name: r.Info.Image, Path: r.Image.Path, OCI: r.Image.OCI, Tag: r.Image.Tag, Trusted: r.Image.Trusted}
	if r.Image.Machine != "" {
		ref, err := machine.ParseRef(r.Image.Machine)
		if err != nil {
			ref.Name = r.Image.Machine
		}
		i.Machine = &machine.Machine{
			Kind: ref.Kind, Name: ref.Name,
			Leader: &machine.Leader{PID: r.Image.Leader, File: leader},
		}
	}
	return i
}

// openTools opens the image with the rights of whom the session is for.
func (p *process) openTools() error {
	var who ns.Identity
	if c := p.request.Caller; c != nil {
		who = ns.Identity{UID: c.UID, GID: c.GID, Groups: c.Groups}
	}
	type answer struct {
		*image.Tree
		err error
	}
	limit := p.image.OpenLimit()
	answered := make(chan answer, 1)
	go func() {
		t, err := image.Open(p.image, who)
		answered <- answer{t, err}
	}()
	select {
	case a := <-answered:
		if a.err == nil && p.request.Info.Writable && a.ReadOnly {
			return fail.New(fail.NotSupported, "leave out --writable", "the image %q is read-only", p.image)
		}
		p.tools = a.Tree
		return a.err
	case <-time.After(limit):
		p.stuck = true
		return fail.New(fail.Unresponsive, "it is on a file system that does not answer",
			"the image %q cannot be opened: it took more than %v", p.image, limit)
	}
}

// shell returns the command, or another shell if it is the caller's and the image does not have that.
func (p *process) shell(command []string) []string {
	if !p.request.Shell || p.image.IsHost() {
		return command
	}
	for _, shell := range []string{command[0], "/bin/bash"} {
		if p.tools.Looks.Exists(shell) {
			return append([]string{shell}, command[1:]...)
		}
	}
	return append([]string{"/bin/sh"}, command[1:]...)
}

// shown returns the map of ids for a tools tree in a machine, both of which may have a user namespace: who is 0 in the
// tree is shown as who is 0 in the machine. nil is the identity.
func shown(tree, session []ns.Range) []fuse.IDRange {
	if isIdentity(tree) && isIdentity(session) {
		return nil
	}
	var out []fuse.IDRange
	for _, t := range tree {
		for _, s := range session {
			first := max(t.Inside, s.Inside)
			end := min(uint64(t.Inside)+uint64(t.Count), uint64(s.Inside)+uint64(s.Count))
			if uint64(first) < end {
				out = append(out, fuse.IDRange{
					Tree: t.Outside + first - t.Inside, Session: s.Outside + first - s.Inside, Count: uint32(end - uint64(first)),
				})
			}
		}
	}
	if out == nil {
		return []fuse.IDRange{nobody}
	}
	return out
}

// nobody maps nobody who could have a file.
var nobody = fuse.IDRange{Tree: 1<<32 - 3, Session: 1<<32 - 3, Count: 1}

func isIdentity(ranges []ns.Range) bool {
	return slices.Equal(ranges, []ns.Range{{Count: 1<<32 - 1}})
}

// outside returns what an id of the machine is on the host; the overflow id if it is none there.
func outside(ranges []ns.Range, id uint32) uint32 {
	for _, r := range ranges {
		if id >= r.Inside && id-r.Inside < r.Count {
			return r.Outside + id - r.Inside
		}
	}
	return 65534
}
