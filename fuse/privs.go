package fuse

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	raw "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// killsSetID says whether a change of the content of h by the process that asks clears its set-id bits. WRITE, SETATTR and
// OPEN requests say so (FUSE_HANDLE_KILLPRIV_V2); FALLOCATE and COPY_FILE_RANGE do not, so for these we look whether
// the process has CAP_FSETID. It waits for us meanwhile, so its thread id means nobody else.
func (fs *tree) killsSetID(in *raw.InHeader, h *handle) bool {
	return hasSetID(h.fd) && !hasFSETID(in.Pid)
}

// hasFSETID says whether a thread has CAP_FSETID in the initial user namespace, ours. Capabilities in another count for
// nothing on the tree. What cannot be found out is a no.
func hasFSETID(tid uint32) bool {
	if tid == 0 {
		return false
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", tid))
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/thread-self/ns/user")
	if err != nil || ours != theirs {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	_, text, _ = bytes.Cut(text, []byte("\nCapEff:\t"))
	text, _, _ = bytes.Cut(text, []byte("\n"))
	set, err := strconv.ParseUint(string(text), 16, 64)
	return err == nil && caps(set)&capFSETID != 0
}

// hasSetID says whether an open file has a set-id bit.
func hasSetID(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) != nil || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}
