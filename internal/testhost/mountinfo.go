package testhost

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A mount is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	device  string // major:minor
	point   string
	fstype  string
	options []string // of the file system, not of the mount
}

// parseMount reads one line:
//
//	36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMount(line string) (mount, error) {
	front, back, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(front), strings.Fields(back)
	if !ok || len(fields) < 6 || len(rest) < 3 {
		return mount{}, fmt.Errorf("not a line of mountinfo: %q", line)
	}
	return mount{device: fields[2], point: unescape(fields[4]), fstype: rest[0], options: strings.Split(rest[2], ",")}, nil
}

// has says whether the file system has an option.
func (m mount) has(option string) bool { return slices.Contains(m.options, option) }

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
