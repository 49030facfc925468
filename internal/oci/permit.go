package oci

import (
	"slices"

	"golang.org/x/sys/unix"
)

// permissions are what somebody may read of an image by the owners and permissions in it. nil: all.
type permissions struct {
	uid    uint32
	groups []uint32
	found  []bool // by inode: there is a way to it that they may go
}

// Restrict gives an image to somebody who could not read its layers: what they may read is what they could if it were
// unpacked. Without it, all is given to whoever the kernel lets have it.
func (i *Image) Restrict(uid, gid uint32, groups []uint32) {
	p := &permissions{uid, append([]uint32{gid}, groups...), make([]bool, len(i.inodes))}
	i.permissions = p
	p.found[0] = true
	for todo := []uint32{0}; len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d := i.inodes[n].dir
		if d == nil || !i.Permits(n, unix.X_OK) {
			continue
		}
		for _, e := range d.byName {
			if !p.found[e.n] {
				p.found[e.n] = true
				todo = append(todo, e.n)
			}
		}
	}
}

// Permits reports whether an inode may be used in a way, R_OK to open or list it, X_OK to look for names in it.
func (i *Image) Permits(n uint32, want uint32) bool {
	p := i.permissions
	if p == nil {
		return true
	}
	if !p.found[n] {
		return false
	}
	var st unix.Stat_t
	i.Stat(n, &st)
	rights := st.Mode
	_, list := i.Xattr(n, "system.posix_acl_access")
	switch {
	case st.Uid == p.uid:
		rights >>= 6
	case list: // which may say less for them than the permissions do
		return want == 0
	case slices.Contains(p.groups, st.Gid):
		rights >>= 3
	}
	return rights&want == want
}
