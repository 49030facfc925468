package fuse

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mount is one mount of the tree. It is kept while an inode on it is known.
type mount struct {
	id    uint64  // stx_mnt_id
	dev   uint64  // the device number, st_dev
	index uint64  // tells the devices of the tree apart, see inoFor
	fd    int     // an open descriptor on it for open_by_handle_at, or with noHandle an O_PATH one
	fsid  [8]byte // of its file system, as fanotify(7) tells it
	flags mountFlags
	refs  int // guarded by mounts.mu
}

type mountFlags uint8

const (
	// opaque: not entered. Its root is shown as an empty directory.
	opaque mountFlags = 1 << iota
	// volatileData: what a file reads as is made up when it is read and its size says nothing: no page cache.
	volatileData
	// honestBirth: the file system notes when an inode is made, and nobody can change that.
	honestBirth
	// noHandle: what is on it cannot be found by file handles.
	noHandle
)

func (m *mount) noHandles() bool { return m.flags&noHandle != 0 }

// mounts are the mounts of the tree that are in use.
type mounts struct {
	mu      sync.Mutex
	byID    map[mountID]*mount
	devs    map[uint64]uint64 // device number → index
	threads *threads
	probe   probe
}

// mountID names a mount. One mount has several devices where the file system says so: the subvolumes of btrfs, the
// layers of overlayfs.
type mountID struct{ id, dev uint64 }

// probe finds out whether a mount is our own: if the tree has it, a walk would go round for ever, and the descriptors of
// it would keep it from being unmounted. A look at our own mount comes back as a request of our own.
type probe struct {
	tid atomic.Uint32 // the thread that looks
	hit atomic.Bool
}

// isSelf says whether fd is on our own mount. mounts.mu is held.
func (p *probe) isSelf(fd int) bool {
	p.hit.Store(false)
	p.tid.Store(uint32(unix.Gettid()))
	defer p.tid.Store(0)
	var stx unix.Statx_t
	flags := unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC
	return unix.Statx(fd, "", flags, unix.STATX_BASIC_STATS, &stx) == nil && p.hit.Load()
}

// saw is told of each look at attributes.
func (p *probe) saw(tid uint32) {
	if t := p.tid.Load(); t != 0 && t == tid {
		p.hit.Store(true)
	}
}

func newMounts(t *threads) *mounts {
	return &mounts{byID: make(map[mountID]*mount), devs: make(map[uint64]uint64), threads: t}
}

// File systems that are shown as an empty directory. Below a procfs mount there is the server itself, and links that
// lead to wherever a process is; looking at an automount point mounts something on the host.
var opaqueTypes = map[int64]bool{
	unix.PROC_SUPER_MAGIC:   true,
	unix.AUTOFS_SUPER_MAGIC: true,
}

// File systems whose files are made up when they are read.
var volatileTypes = map[int64]bool{
	unix.SYSFS_MAGIC:             true,
	unix.CGROUP_SUPER_MAGIC:      true,
	unix.CGROUP2_SUPER_MAGIC:     true,
	unix.DEBUGFS_MAGIC:           true,
	unix.TRACEFS_MAGIC:           true,
	unix.SECURITYFS_MAGIC:        true,
	unix.SELINUX_MAGIC:           true,
	unix.EFIVARFS_MAGIC:          true,
	unix.PSTOREFS_MAGIC:          true,
	unix.RDTGROUP_SUPER_MAGIC:    true,
	unix.BPF_FS_MAGIC:            true,
	unix.BINFMTFS_MAGIC:          true,
	0x62656570 /* configfs */ :   true,
	0x65735543 /* fusectl */ :    true,
	0x19800202 /* mqueue */ :     true,
	0x67596969 /* rpc_pipefs */ : true,
}

// File systems that note the time of birth when they make an inode, and let nobody change it.
var honestTypes = map[int64]bool{
	unix.EXT4_SUPER_MAGIC:  true, // ext2 and ext3 as well, which have no such time
	unix.XFS_SUPER_MAGIC:   true,
	unix.BTRFS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC:       true,
}

// get returns the mount that fd, an O_PATH descriptor with attributes stx, is on, and counts a reference.
func (ms *mounts) get(fd int, stx *unix.Statx_t) (*mount, error) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	dev := unix.Mkdev(stx.Dev_major, stx.Dev_minor)
	if m := ms.byID[mountID{stx.Mnt_id, dev}]; m != nil {
		m.refs++
		return m, nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, err
	}
	if st.Type == unix.FUSE_SUPER_MAGIC && ms.probe.isSelf(fd) {
		return nil, unix.ELOOP
	}
	m := &mount{id: stx.Mnt_id, dev: dev, fd: -1, refs: 1}
	binary.NativeEndian.PutUint32(m.fsid[:], uint32(st.Fsid.Val[0]))
	binary.NativeEndian.PutUint32(m.fsid[4:], uint32(st.Fsid.Val[1]))
	switch {
	case opaqueTypes[st.Type]:
		m.flags = opaque
	case volatileTypes[st.Type]:
		m.flags = volatileData
	case honestTypes[st.Type]:
		m.flags = honestBirth
	}
	if m.flags&opaque == 0 {
		m.fd = ms.open(fd, stx)
	}
	if m.fd < 0 {
		m.flags = m.flags&^honestBirth | noHandle
		// A descriptor on it all the same: while there is one, no other mount gets its number.
		var err error
		if m.fd, err = unix.Openat(ms.threads.procFD, fdName(fd), unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return nil, err
		}
	}
	index, ok := ms.devs[dev]
	if !ok {
		index = uint64(len(ms.devs))
		ms.devs[dev] = index
	}
	m.index = index
	ms.byID[mountID{stx.Mnt_id, dev}] = m
	return m, nil
}

// open returns a descriptor for open_by_handle_at, which takes no O_PATH one, or -1. The first that is seen of a mount
// is a directory, or a regular file if a file is what is mounted; nothing else may be opened.
func (ms *mounts) open(fd int, stx *unix.Statx_t) int {
	var flags int
	switch uint32(stx.Mode) & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	case unix.S_IFREG:
		flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
	default:
		return -1
	}
	var buf handleBuffer
	handle, err := readHandle(fd, &buf)
	if err != nil {
		return -1
	}
	mfd := -1
	err = ms.threads.with(capDACReadSearch, 0, func() (err error) {
		// The descriptor is only used to say which mount is meant, so that the caller may not read is no matter.
		if mfd, err = unix.Openat(ms.threads.procFD, fdName(fd), flags, 0); err != nil {
			return err
		}
		// Some file systems encode handles that they cannot decode.
		probe, err := openHandle(mfd, string(handle))
		if err == nil {
			unix.Close(probe)
		}
		return err
	})
	if err != nil && mfd >= 0 {
		unix.Close(mfd)
		mfd = -1
	}
	if err != nil {
		return -1
	}
	return mfd
}

// hold counts a reference to a mount unless it went out of use.
func (ms *mounts) hold(m *mount) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m.refs == 0 {
		return false
	}
	m.refs++
	return true
}

// put gives a reference back.
func (ms *mounts) put(m *mount) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m.refs--
	if m.refs > 0 {
		return
	}
	delete(ms.byID, mountID{m.id, m.dev})
	unix.Close(m.fd)
}

// inoFor makes the inode number that the session sees. Numbers are unique on one device only, but the session sees one
// device: without the index, find would take a mounted root for its own parent (both are inode 2 on ext4)
// and tar would make hard links of unrelated files. The root's own device keeps its numbers.
func (m *mount) inoFor(ino uint64) uint64 { return ino ^ m.index<<48 }
