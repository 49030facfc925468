package fuse

import "golang.org/x/sys/unix"

// place is where an inode was seen last: a name in a directory. Inodes of file systems without file handles (overlayfs,
// 9p) are found again by it after their descriptor was closed.
//
// A place is a hint. The host may have put another file there since, so what is found is compared with what is
// looked for, and if it is another the answer is ESTALE: the kernel then looks the path up anew (LOOKUP_REVAL). The
// directory is named by its node id, which keeps nothing: it may have been forgotten.
type place struct {
	dir  uint64
	name string
}

// maxPlaces bounds the way up from a place. Places that the host changed may lead in a circle.
const maxPlaces = 1000

// reopenInode opens an inode whose descriptor was closed. It runs on a server thread.
func (fs *tree) reopenInode(n *inode) (fd int, err error) {
	if n.mnt == nil {
		return -1, unix.ESTALE // made up
	}
	fd = -1
	if n.handle != "" {
		err = fs.threads.with(capDACReadSearch, 0, func() (err error) {
			fd, err = openHandle(n.mnt.fd, n.handle)
			return err
		})
		return fd, err
	}
	names, d, err := fs.wayTo(n)
	if err != nil {
		return -1, err
	}
	defer fs.descs.put(d)
	// Somebody who is in a directory stays there, whatever becomes of the directories above.
	err = fs.threads.with(capDACReadSearch, 0, func() (err error) {
		fd, err = openWay(d.fd, names)
		return err
	})
	switch err {
	case nil:
		if fs.isAt(n, fd) {
			return fd, nil
		}
		unix.Close(fd)
		return -1, unix.ESTALE
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return -1, unix.ESTALE
	default: // it may be there: EMFILE, ENOMEM, EIO
		return -1, err
	}
}

// wayTo returns the names, the last first, that lead to n from a directory that can be borrowed, and that directory.
func (fs *tree) wayTo(n *inode) (names []string, d *desc, err error) {
	for at := n; len(names) < maxPlaces; {
		p := fs.descs.placeOf(at)
		if p == nil {
			return nil, nil, unix.ESTALE
		}
		names = append(names, p.name)
		dir := fs.inodes.get(p.dir)
		if dir == nil || !fs.inodes.again(dir) {
			return nil, nil, unix.ESTALE
		}
		if dir.handle != "" {
			d, err = fs.descs.borrow(dir)
		} else {
			d = fs.descs.borrowOpen(dir)
		}
		fs.forget(dir.node, 1)
		if d != nil || err != nil {
			return names, d, err
		}
		at = dir
	}
	return nil, nil, unix.ESTALE
}

// openWay opens what names, the last first, lead to from a directory.
func openWay(dir int, names []string) (int, error) {
	at := dir
	for i := len(names) - 1; i >= 0; i-- {
		fd, err := openPath(at, names[i])
		if at != dir {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = fd
	}
	return at, nil
}

// isAt says whether fd is on the inode n. (Its time of birth says nothing: overlayfs reports that of its copy.)
func (fs *tree) isAt(n *inode, fd int) bool {
	var stx unix.Statx_t
	return statFD(fd, &stx) == nil && stx.Mnt_id == n.mnt.id && unix.Mkdev(stx.Dev_major, stx.Dev_minor) == n.mnt.dev &&
		stx.Ino == n.ino && uint32(stx.Mode)&unix.S_IFMT == n.kind
}

// moved notes the new place of what was renamed. fd is a descriptor of dir.
func (fs *tree) moved(dir *inode, fd int, name string) {
	if !dir.mnt.noHandles() {
		return
	}
	if n, _ := fs.knownAt(fd, name); n != nil {
		fs.descs.place(n, dir, name)
	}
}

// knownAt returns the inode behind a name if the kernel knows it, or nil, and how many names it has.
func (fs *tree) knownAt(dirfd int, name string) (n *inode, links uint32) {
	fd, err := openPath(dirfd, name)
	if err != nil {
		return nil, 0
	}
	defer unix.Close(fd)
	return fs.knownOn(fd)
}

// knownOn returns the inode that an O_PATH descriptor is on if the kernel knows it, or nil, and how many names it has.
func (fs *tree) knownOn(fd int) (n *inode, links uint32) {
	var buf handleBuffer
	mnt, handle, stx, err := fs.identify(fd, &buf)
	if err != nil {
		return nil, 0
	}
	defer fs.mounts.put(mnt)
	return fs.inodes.peek(inoKey{mnt, stx.Ino}, handle), stx.Nlink
}
