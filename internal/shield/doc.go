// Package shield keeps a machine's processes from taking over the commands of a session.
//
// # The hole
//
// A command runs in the machine's pid and user namespaces, so the machine's root sees it, and where that root has
// CAP_SYS_PTRACE there, or no fewer capabilities than the command, the kernel lets it ptrace the command, write
// to its memory, take its descriptors (pidfd_getfd(2)), join its mount namespace and follow its /proc/PID/root.
// A command that has been taken over opens files of the tools tree as the command itself does. The file server cannot
// tell: by the time that it is asked, the tracer may have let go again.
//
// # What closes it
//
// All of these ways go through one function of the kernel, security_ptrace_access_check (ptrace(2), 'Ptrace access
// mode checking'). The shield is a BPF program that runs before it (BPF_MODIFY_RETURN, Linux 5.7) and refuses
// with EPERM where the target is in a session's control group and whoever asks is
//
//   - in another session, or
//   - in a pid namespace below the host's, or
//   - for a machine that shares the host's pid namespace, in the machine's control group.
//
// A debugger in the session may do to the session's own processes what it may do anywhere, as may the host's root. No
// other process is treated differently, and nothing is changed in the machine. The program is
// attached as long as a descriptor of its link is open: each session process holds one.
//
// A machine's root can still send signals to a session's processes, as an init that shuts down must: that ends or
// stops a session, and opens nothing.
//
// Requires CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), a kernel with BTF and function tracing, as
// distributions have them, and that the kernel is not locked down to confidentiality.
package shield
