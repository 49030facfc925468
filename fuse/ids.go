package fuse

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// IDRange maps Count user or group ids. Tree is the first id in the tree of files, Session the first id that the kernel
// is shown for it, as an id of the initial user namespace.
type IDRange struct {
	Tree, Session, Count uint32
}

// IDMap maps the ids of the tree to those that the session sees. Empty maps are the identity. As with an idmapped
// mount, an id without a mapping is shown as 65534, and creating or giving away a file with one fails with EOVERFLOW.
//
// Ranges may not overlap, with one exception: where there is a Caller, whose rights decide and not what is shown, several
// ids of the tree may be shown as one. It then stands for the one that comes first.
type IDMap struct {
	UID, GID []IDRange
}

// overflowID is what Linux shows for ids that it cannot express (/proc/sys/kernel/overflowuid's default).
const overflowID = 65534

// idMap is an IDMap that was checked.
type idMap struct {
	uid, gid []IDRange
}

func newIDMap(m IDMap, merge bool) (idMap, error) {
	for kind, ranges := range map[string][]IDRange{"uid": m.UID, "gid": m.GID} {
		for i, r := range ranges {
			if r.Count == 0 || uint64(r.Tree)+uint64(r.Count) > 1<<32-1 || uint64(r.Session)+uint64(r.Count) > 1<<32-1 {
				return idMap{}, fmt.Errorf("%s range %+v is empty or too long", kind, r)
			}
			for _, o := range ranges[:i] {
				if overlap(r.Tree, o.Tree, r.Count, o.Count) || !merge && overlap(r.Session, o.Session, r.Count, o.Count) {
					return idMap{}, fmt.Errorf("%s ranges %+v and %+v overlap", kind, o, r)
				}
			}
		}
	}
	return idMap{uid: m.UID, gid: m.GID}, nil
}

func overlap(a, b, na, nb uint32) bool {
	return uint64(a) < uint64(b)+uint64(nb) && uint64(b) < uint64(a)+uint64(na)
}

// show maps an id of the tree to the session's.
func show(ranges []IDRange, id uint32) uint32 {
	if len(ranges) == 0 {
		return id
	}
	for _, r := range ranges {
		if id >= r.Tree && id-r.Tree < r.Count {
			return r.Session + (id - r.Tree)
		}
	}
	return overflowID
}

// take maps an id of the session to the tree's.
func take(ranges []IDRange, id uint32) (uint32, error) {
	if len(ranges) == 0 {
		return id, nil
	}
	for _, r := range ranges {
		if id >= r.Session && id-r.Session < r.Count {
			return r.Tree + (id - r.Session), nil
		}
	}
	return 0, unix.EOVERFLOW
}

// fromSession maps the ids of a process that asks for something.
func (m *idMap) fromSession(uid, gid uint32) (uint32, uint32, error) {
	u, err := take(m.uid, uid)
	if err != nil {
		return 0, 0, err
	}
	g, err := take(m.gid, gid)
	return u, g, err
}
