package session

import (
	"slices"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// Caller is the person of this host for whom a session is, if that is not root. The session acts on the tools tree with
// these ids, whatever ids the command has in the machine.
type Caller struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"` // supplementary
}

// credential is what the file system is served with: nil for root.
func (c *Caller) credential() *fuse.Credential {
	if c == nil {
		return nil
	}
	return &fuse.Credential{UID: c.UID, GID: c.GID, Groups: c.Groups}
}

// uid returns the caller's uid.
func (c *Caller) uid() uint32 {
	if c == nil {
		return 0
	}
	return c.UID
}

// shownTo returns the map of ids for a file system that is served for a caller. The caller's own ids are all shown as
// the command's, an id of the host. All others are shown as to root's sessions, root's files as those of the machine's
// root: ssh and its like refuse configuration files of others. That gives no right: the file system acts as the caller.
func shownTo(rest []fuse.IDRange, own []uint32, command uint32) []fuse.IDRange {
	if len(rest) == 0 {
		rest = []fuse.IDRange{{Count: 1<<32 - 1}}
	}
	var out []fuse.IDRange
	for i, id := range own {
		if slices.Contains(own[:i], id) {
			continue
		}
		out = append(out, fuse.IDRange{Tree: id, Session: command, Count: 1})
		rest = without(rest, id)
	}
	return append(out, rest...)
}

// without takes one id of the tree out of ranges.
func without(ranges []fuse.IDRange, id uint32) []fuse.IDRange {
	var out []fuse.IDRange
	for _, r := range ranges {
		if id < r.Tree || id-r.Tree >= r.Count {
			out = append(out, r)
			continue
		}
		before := id - r.Tree
		if before > 0 {
			out = append(out, fuse.IDRange{Tree: r.Tree, Session: r.Session, Count: before})
		}
		if after := r.Count - before - 1; after > 0 {
			out = append(out, fuse.IDRange{Tree: id + 1, Session: r.Session + before + 1, Count: after})
		}
	}
	return out
}

// Standing is what a machine is to the users of the host.
type Standing struct {
	// Privileged: its root is the host's. Without a user namespace, or with one that has the host's root in it, a
	// command there has capabilities that count on the host: it can make device nodes, mount disks, load whatever
	// the machine may load. Entering it is as good as being root.
	Privileged bool
	// Owners are those who made its user namespace, or one around it, and own its other namespaces with it, by uid. They can
	// do anything there as it is.
	Owners []uint32
}

// Standing tells what m is to the users of the host.
func (l *Launcher) Standing(m *machine.Machine) (Standing, error) {
	var s Standing
	its, err := ns.OwnershipOf(m.Leader.PID)
	var uids, gids []ns.Range
	if err == nil {
		uids, gids, err = ns.IDMaps(m.Leader.PID)
	}
	// The number means the leader only as long as it lives.
	if !m.Leader.Alive() {
		return s, fail.New(fail.NotRunning, "", "machine %q has stopped", m.Ref())
	}
	if err != nil {
		return s, err
	}
	s.Owners = its.Owners
	s.Privileged = !its.Apart || hasRoot(uids) || hasRoot(gids)
	return s, nil
}

// hasRoot reports whether a user namespace's map has the host's id 0 in it.
func hasRoot(ranges []ns.Range) bool {
	for _, r := range ranges {
		if r.Outside == 0 {
			return true
		}
	}
	return false
}
