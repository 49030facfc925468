package session

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// account is a user of a machine (passwd(5)).
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// databaseLimit bounds how much of a machine's passwd or group file is read, in bytes.
const databaseLimit = 4 << 20

// findAccount looks a user up, by name or number, in the machine's own files. They are parsed here: no
// NSS module is loaded, of the machine or of the host (CVE-2019-14271). Root needs no entry, nor does
// a user given by number.
func findAccount(root *ns.Root, user string) (account, error) {
	if user == "" {
		user = "root"
	}
	passwd, err := readDatabase(root, "/etc/passwd")
	if err != nil {
		return account{}, err
	}
	group, err := readDatabase(root, "/etc/group")
	if err != nil {
		return account{}, err
	}
	a, ok := parsePasswd(passwd, user)
	if !ok {
		return account{}, fail.New(fail.NoSuchUser, "a number will do, too: --user=1000",
			"the machine has no user %q", user)
	}
	a.groups = parseGroups(group, a)
	return a, nil
}

// readDatabase reads a machine's or a tools tree's file of users or groups. What is no regular file in its root (a fifo, a link
// into procfs) is as good as none.
func readDatabase(root image.Looks, path string) (string, error) {
	data, err := root.ReadFile(path, databaseLimit)
	for _, none := range []error{fs.ErrNotExist, fs.ErrPermission, unix.ENOTDIR, unix.ELOOP, unix.EINVAL} {
		if errors.Is(err, none) {
			return "", nil
		}
	}
	return string(data), err
}

func parsePasswd(passwd, user string) (account, bool) {
	for line := range strings.Lines(passwd) {
		// name:password:uid:gid:comment:home:shell
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 6 || (f[0] != user && f[2] != user) {
			continue
		}
		uid, errU := parseID(f[2])
		gid, errG := parseID(f[3])
		if errU == nil && errG == nil {
			return account{name: f[0], uid: uid, gid: gid, home: f[5]}, true
		}
	}
	if user == "root" || user == "0" {
		return account{name: "root", home: "/root"}, true
	}
	if id, err := parseID(user); err == nil {
		return account{name: user, uid: id, gid: id, home: "/"}, true
	}
	return account{}, false
}

// parseGroups returns the groups that list a as a member (group(5)), without its own.
func parseGroups(group string, a account) []uint32 {
	var groups []uint32
	for line := range strings.Lines(group) {
		// name:password:gid:member,member
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) != 4 || !slices.Contains(strings.Split(f[3], ","), a.name) {
			continue
		}
		if gid, err := parseID(f[2]); err == nil && gid != a.gid {
			groups = append(groups, gid)
		}
	}
	return groups
}

// parseID parses a uid or gid. The last number is no id: chown(2) takes it for 'leave as it is'.
func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err == nil && id == 1<<32-1 {
		err = strconv.ErrRange
	}
	return uint32(id), err
}

// firstRegularID is where the ids of people begin; below are those of the system (login.defs(5), UID_MIN).
const firstRegularID = 1000

// withSystemUsers returns a machine's passwd or group file with the system's entries of the tools tree's that
// it lacks at the end. Names and ids that the machine has mean what they mean there: the first entry counts.
func withSystemUsers(own, host string) string {
	var b strings.Builder
	b.WriteString(own)
	if own != "" && !strings.HasSuffix(own, "\n") {
		b.WriteByte('\n')
	}
	known := map[string]bool{}
	for line := range strings.Lines(own) {
		name, _, _ := strings.Cut(line, ":")
		known[name] = true
	}
	for line := range strings.Lines(host) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 4 || known[f[0]] {
			continue
		}
		if id, err := parseID(f[2]); err == nil && id != 0 && id < firstRegularID {
			b.WriteString(strings.Join(f, ":") + "\n")
		}
	}
	return b.String()
}
