// Package testhost boots the system that the integration tests run in: a real Debian 13 with systemd as
// process 1, dbus, polkit, machined and LXC, and machines in it to attach to.
//
// A developer's computer, or a CI runner that is itself a container without an init, is no place to
// stop daemons, kill -9 sessions and install bus policies. So the tests get a host of their own, and
// nothing of systemd, machined, D-Bus, polkit or LXC is ever imitated.
//
// # How it is made
//
//	mmdebstrap ──► /var/cache/cntr-attach-testhost/<key>/{host,deb}    once; key: a hash of the recipe
//	                     │ cp --archive --reflink=auto, then files/ and the machines
//	                     ▼
//	               /var/cache/cntr-attach-testhost/run/<name>/root     thrown away at the end
//	                     │ systemd-nspawn --boot
//	                     ▼
//	               the test host, its leader recorded in /run/cntr-attach-testhost/<name>/
//
// The copy costs about a second for some 400 MB. It is chosen over an overlay because the kernel stacks
// file systems two deep at most, and FUSE passthrough, which the tests measure, counts; and because
// overlayfs cannot be mounted with mapped ids, which machines with a user namespace need.
//
// # The machines
//
//   - deb is a minimal Debian that was booted: systemd and dbus, and neither ip nor ps. It has a
//     network of its own, 10.88.1.2 on host0.
//   - debu is the same with a user namespace (-U), 10.88.2.2.
//   - slim is one program, machines/slim.c, with the two libraries it needs, on a read-only root: no
//     shell, no /etc, no /var.
//
// Each runs under Debian's own systemd-nspawn@.service, and is a directory in /var/lib/machines.
//
// # The virtual machine
//
// A container has the kernel of its host. Tests with the tag "vm", and others that are worth it, also run in a virtual machine
// with Debian's kernel, AppArmor and all controllers of control groups ([Host.VM], make test-vm): QEMU, with KVM where
// there is one. Its disk is made of the same trees, without the engines, by mke2fs; the tests' output comes out of its
// second serial port.
//
// # Names
//
// The test host is called "default" unless TESTHOST says otherwise. Hosts of different names know
// nothing of each other and can run at the same time.
package testhost
