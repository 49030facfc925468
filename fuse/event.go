package fuse

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// event is an event of fanotify(7).
type event struct {
	mask  uint64
	tid   int    // the thread that did it
	dir   string // file system and handle of the directory
	name  string // in the directory; "." is the directory itself
	child string // file system and handle of what has, or had, the name; empty if it is not known
}

// eachEvent calls f for each event in what was read from a fanotify group with FAN_REPORT_DFID_NAME_TARGET and FAN_REPORT_TID. What is cut
// short is left out.
func eachEvent(buf []byte, f func(*event)) {
	const metadata, header, fid = 24, 4, 16 // bytes of struct fanotify_event_metadata, _info_header, and _info_fid before the handle
	n := binary.NativeEndian
	for len(buf) >= metadata {
		size := int(n.Uint32(buf))
		if size < metadata || size > len(buf) {
			return
		}
		e := event{mask: n.Uint64(buf[8:]), tid: int(int32(n.Uint32(buf[20:])))}
		for info := buf[metadata:size]; len(info) >= header+fid; {
			kind, length := info[0], int(n.Uint16(info[2:]))
			if length < header+fid || length > len(info) {
				break
			}
			end := header + fid + int(n.Uint32(info[header+8:]))
			if end > length {
				break
			}
			key := string(info[header:header+8]) + string(info[header+12:end])
			switch kind {
			case unix.FAN_EVENT_INFO_TYPE_DFID_NAME:
				name, _, _ := bytes.Cut(info[end:length], []byte{0})
				e.dir, e.name = key, string(name)
			case unix.FAN_EVENT_INFO_TYPE_DFID:
				e.dir, e.name = key, "."
			case unix.FAN_EVENT_INFO_TYPE_FID:
				e.child = key
			}
			info = info[length:]
		}
		if e.dir == "" { // of a directory that is itself what the event is about
			e.dir, e.name = e.child, "."
		}
		f(&e)
		buf = buf[size:]
	}
}

// readMounts reads /proc/self/mountinfo: mount points by mount number.
func readMounts(table *os.File) (map[string]string, error) {
	if _, err := table.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(table)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for _, line := range strings.Split(string(data), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 {
			all[fields[0]] = unescape(fields[4])
		}
	}
	return all, nil
}

// unescape undoes the octal escapes of mountinfo: space, tab, newline, backslash.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// mountsChanged finds out what was mounted and unmounted since the last time.
func (fs *tree) mountsChanged(table *os.File) {
	w := fs.watcher
	now, err := readMounts(table)
	if err != nil {
		return
	}
	before := w.mounts
	w.mounts = now
	for id, point := range now {
		if before[id] != point {
			w.points[point] = pointTries
		}
	}
	for id, point := range before {
		if now[id] != point {
			w.points[point] = pointTries
		}
	}
}

const (
	pointTries    = 100
	resolveCached = 0x20 // RESOLVE_CACHED of linux/openat2.h
)

// expirePoints makes the kernel look up the names again that something was mounted on, or is not any more.
func (fs *tree) expirePoints() {
	for point, tries := range fs.watcher.points {
		// The way to a mount point is in memory, and anything else could hang. But while somebody mounts something the kernel may
		// not be sure of the way (EAGAIN).
		err := fs.expirePoint(point)
		if err == unix.EAGAIN && tries > 1 {
			fs.watcher.points[point]--
		} else {
			delete(fs.watcher.points, point)
		}
	}
}

func (fs *tree) expirePoint(point string) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, path.Dir(point), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolveCached | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if dir, _ := fs.knownOn(fd); dir != nil {
		fs.watcher.expireName(dir, path.Base(point))
	}
	return nil
}
