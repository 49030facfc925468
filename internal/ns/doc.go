// Package ns enters machines: it is the only user of setns, clone and the mount API.
//
// # How a command gets into a machine
//
// A Go process cannot join a user namespace: the kernel wants a single thread there, and a Go program
// has several before main runs. So the session process forks, with the bare system call, and its
// children run no Go code that the runtime would notice: they execute a program of system calls,
// prepared as a table by the parent, one step after the other (see [program]). The first step that
// fails ends the child, and the parent is told which it was.
//
// There are three of them:
//
//	session process   Go, in the host's namespaces; serves the tree
//	└─ joiner         joins the machine's namespaces, all but the user namespace; forks the reaper; ends
//	└─ reaper         (the joiner's child, handed to the session by CLONE_PARENT) in the machine's pid
//	   │              namespace: makes the nested mount namespace, then waits for what dies below it
//	   └─ command     joins the user namespace, drops what the machine has not, executes the command
//
// The reaper is there because a machine's first process often does not wait for orphans, which would
// then stay as zombies for ever. It keeps no capability but CAP_KILL, no descriptor but a pipe, the list of
// its children and the scope's cgroup.kill, and when the session process dies it kills all that is left.
//
// # The nested mount namespace
//
// All mounts are detached objects before they get a place (Linux 5.2, open_tree(2), fsmount(2)): those of
// the machine are cloned from O_PATH descriptors that the session process opened and checked, so no path
// of the machine is resolved here, and a machine that swaps its directories for symlinks meanwhile
// changes nothing. The namespace belongs to the host's user namespace: a machine with a user namespace of
// its own cannot join it, nor change its mounts.
//
// Requires Linux 5.14: mount_setattr(2) is from 5.12, cgroup.kill from 5.14.
package ns
