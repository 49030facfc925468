// Package monitor finds running LXC containers without liblxc, and without reading a file that a user
// could have written.
//
// Each running container has a monitor, a process on the host that started it, waits for its end, and
// answers questions on its command socket, an abstract one:
//
//	@/var/lib/lxc/web/command          lxcpath, name (as long as that fits in a socket's address)
//	   │ listens: [lxc monitor] /var/lib/lxc web        uid 0
//	   └ its child: process 1 of the container          the leader
//
// An abstract socket belongs to whoever binds it first. The name in it is a claim, and anybody may claim
// to be root's container "web" while that one is stopped. But the kernel tells who listens (SO_PEERCRED),
// which process has the socket, and whose children are whose. That decides:
//
//   - Containers whose monitor is root's are "web", whatever lxcpath they are in.
//   - Those of other users are "web@alice", never "web": a user must not be able to take a name that an
//     administrator types. Their leader has to be in a user namespace that the same user has made, so that
//     alice can give her own processes this way and nobody else's.
//
// So a user's lxcpath is known from the socket, wherever it is (~/.local/share/lxc, or lxc.lxcpath in
// ~/.config/lxc/lxc.conf), and root need not go there. liblxc must not be asked about these containers by
// root, as lxc_container_new reads the configuration that it finds, follows what that includes, and removes
// a container that it takes for half made.
//
// Incus and LXD use liblxc, too. Their containers are left out here: they have names of their own.
package monitor
