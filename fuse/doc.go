// Package fuse serves a tree of files over /dev/fuse so that nobody can tell it from the tree itself.
//
// # The idea
//
// A session sees the files of another place, normally of the host, through a mount of its own. The kernel sends each
// operation on that mount as a message to /dev/fuse, this package performs it on the tree, and answers. Three layers
// do that, and each knows only the next:
//
//	transport   takes requests and gives the answers (transport.go), by /dev/fuse (dev.go) or over io_uring (uring.go, entry.go, ring.go), and has them performed (quick.go)
//	operations  what each request means: lookup.go, file.go, open.go, dir.go, listing.go, create.go, remove.go, xattr.go, lock.go, …
//	            and, the other way round, what changed on the tree (watch.go, event.go)
//	inodes      what a number that the kernel holds stands for, and how to get at it (inode.go, table.go, desc.go, place.go)
//
// # What an inode is
//
// The kernel names inodes by numbers that we choose. Behind each number stands the identity of one inode of the tree:
// the mount it was reached on, its inode number there, and its file handle (name_to_handle_at(2)), which tells it
// from a later file that was given the same inode number. It does not hold a path. Paths change under the
// server's feet: a path-based server reads the wrong file after a rename, loses files that were unlinked while they
// were open, and can be led out of the tree by whoever swaps a directory for a symbolic link at the right moment.
//
// To work on an inode we need a descriptor. A bounded number of them is kept (desc.go); the rest are opened again by
// their handle with open_by_handle_at(2), which finds the very same inode or fails with ESTALE. On a file system without
// file handles, an inode is looked for where it was seen last (place.go), and checked. An inode that is known is
// recognised by statx(2) alone, where its number and the time of its birth leave no doubt (birthOf). Names are only ever
// used one component at a time, relative to the descriptor of their directory, with O_PATH and O_NOFOLLOW: that opens
// nothing and follows nothing. A descriptor for input and output is then made from the O_PATH one through
// /proc/self/fd, after its type was checked, so no FIFO, socket or device of the tree is ever opened by the server.
//
// # Who checks permissions
//
// The mount has default_permissions: the kernel checks mode bits, ACLs and capabilities of the process that asks, as
// it does for a disk. The server adds what the kernel cannot do. It creates files under the file system uid and gid
// of the process that asked, so that ownership, set-gid directories, quotas and default ACLs come out as on the
// tree itself; it clears set-id bits when told to; and it asks Options.Allow before it hands out anything. What the kernel has in memory
// it gives out by itself: attributes and targets of links always; with Options.Guarded also names of directories, which are not opened
// then (listing.go). When a file system is opened for a person who is not root (Options.Caller), all that the server does on the tree is done
// with that person's identity and without capabilities, so the tree's own kernel checks apply as well.
//
// # Mount points over the tree
//
// The session mounts other file systems over places of this tree. Linux detaches such a mount silently as soon as the
// name under it turns out to lead to another inode, which happens each time that the host replaces the file
// (useradd replaces /etc/passwd). So mount only over entries made up with Options.Extra: these never change.
//
// # How fresh the view is
//
// The kernel caches names and attributes for Options.Cache, one second unless told otherwise: that long may the session
// see the old state after a change on the tree that it did not make itself. With Options.Watch, what can be watched (watch.go) is
// believed for longer, and a change is seen in milliseconds (TestChangesAreSeenAtOnce), or after Options.Watch should an event be lost. Times of
// access are told by nobody. File data is as fresh as the attributes,
// and always fresh after an open(2) (close-to-open), or at any time where passthrough applies
// (TestHostChangesAreSeenInTime). inotify in the session reports what the session does, not what the host does; on the host
// it reports what both do (TestWhatInotifySees).
//
// # Limits
//
//   - Unix sockets and FIFOs of the tree are not connected to the tree's (ECONNREFUSED for sockets).
//   - Mounted procfs and autofs are shown as empty directories; our own mount, if it is in the tree, is not
//     entered (ELOOP).
//   - On a file system without file handles, overlayfs for one, a directory that the host moved fails with ESTALE for
//     who is in it, if its descriptor had to be closed for want of descriptors, until the session comes by it again by
//     path. Where an inode number is used again under the same name, the two files are taken for one.
//   - All ioctls but those of ioctl.go fail with ENOTTY. fallocate with COLLAPSE_RANGE or INSERT_RANGE and reflinks
//     are refused by the kernel for all FUSE file systems (EOPNOTSUPP), and syncfs(2) does not reach the server.
//   - To follow a symbolic link, or to list a directory, does not renew its time of access where the kernel has it in memory.
//   - POSIX locks that wait for one another in a circle are not found out (no EDEADLK).
//   - What the session closed is given back by the host up to three seconds later: the space of a file that the host
//     removes, and a file system that it wants to unmount.
//   - A file in passthrough mode that is given set-id bits while it is open loses them with root's next write, too.
//   - After the server is gone, files that are open in passthrough mode can still be read and written.
//   - Handles that the session took with name_to_handle_at(2) work while the kernel remembers the inode, and for the
//     8192 that it forgot last.
//
// Needs root, Linux 6.1, and 6.9 for passthrough.
package fuse
