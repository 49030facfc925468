package fuse

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Two sorts of extended attributes have user and group ids in them, which need the id map.

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	fileCaps   = "security.capability"
)

// Layout of a POSIX ACL (linux/posix_acl_xattr.h): a version, then entries of tag, permissions and id.
const (
	aclHeader = 4
	aclEntry  = 8
	aclUser   = 0x02
	aclGroup  = 0x08
)

// Layout of struct vfs_ns_cap_data (linux/capability.h): revision 3 ends with the uid of the namespace's root.
const (
	capsRevisionMask = 0xff000000
	capsRevision3    = 0x03000000
	capsSize3        = 24
	capsRootID       = 20
)

// showXattr maps the ids in an attribute to the session's, in place.
func (m *idMap) showXattr(attr string, data []byte) {
	_ = eachID(attr, data, func(ranges idKind, id uint32) (uint32, error) {
		return show(m.ranges(ranges), id), nil
	})
}

// takeXattr maps the ids in an attribute to the tree's, in a copy.
func (m *idMap) takeXattr(attr string, data []byte) ([]byte, error) {
	if len(m.uid) == 0 && len(m.gid) == 0 {
		return data, nil
	}
	data = append([]byte(nil), data...)
	err := eachID(attr, data, func(kind idKind, id uint32) (uint32, error) {
		return take(m.ranges(kind), id)
	})
	return data, err
}

type idKind bool

const (
	userID  idKind = false
	groupID idKind = true
)

func (m *idMap) ranges(kind idKind) []IDRange {
	if kind == groupID {
		return m.gid
	}
	return m.uid
}

// eachID replaces each id in an attribute. What does not look as it should is left alone: the tree's file system
// refuses it.
func eachID(attr string, data []byte, f func(idKind, uint32) (uint32, error)) error {
	replace := func(kind idKind, b []byte) error {
		id, err := f(kind, binary.LittleEndian.Uint32(b))
		if err == nil {
			binary.LittleEndian.PutUint32(b, id)
		}
		return err
	}
	switch attr {
	case aclAccess, aclDefault:
		for off := aclHeader; off+aclEntry <= len(data); off += aclEntry {
			kind := userID
			switch binary.LittleEndian.Uint16(data[off:]) {
			case aclUser:
			case aclGroup:
				kind = groupID
			default:
				continue
			}
			if err := replace(kind, data[off+4:]); err != nil {
				return unix.EOVERFLOW
			}
		}
	case fileCaps:
		if len(data) == capsSize3 && binary.LittleEndian.Uint32(data)&capsRevisionMask == capsRevision3 {
			return replace(userID, data[capsRootID:])
		}
	}
	return nil
}
