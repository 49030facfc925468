package engine

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// running returns the processes of a name (comm). A name is a claim: anybody may take it.
func running(ctx context.Context, comm string) ([]int, error) {
	type names struct{}
	byName, err := machine.Shared(ctx, names{}, func() (map[string][]int, error) {
		byName := map[string][]int{}
		_, err := machine.Processes(ctx, func(pid int) bool {
			name := commOf(pid)
			byName[name] = append(byName[name], pid)
			return false
		})
		return byName, err
	})
	return byName[comm], err
}

// commOf returns a process's name, "" if it has ended.
func commOf(pid int) string {
	name, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return strings.TrimSuffix(string(name), "\n")
}

// argsOf returns a process's arguments, the first 64 KiB of them, as it shows them.
func argsOf(pid int) ([]string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return strings.Split(string(data), "\x00"), err
}

// owner is whose containers are meant: root's are "web", those of others "web@alice".
type owner struct {
	uid  uint32
	name string // empty for root
}

// ownerOf names a user of the host; one that has no name by number.
func ownerOf(uid uint32) owner {
	if uid == 0 {
		return owner{}
	}
	number := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(number)
	if err != nil || u.Username == "" || strings.Contains(u.Username, "@") {
		return owner{uid, number}
	}
	return owner{uid, u.Username}
}

// ref is the name of one of the owner's containers.
func (o owner) ref(name string) string {
	if o.uid == 0 {
		return name
	}
	return name + "@" + o.name
}

// owns takes the owner off a name, and reports whether it is this one. No engine has names with an "@".
func (o owner) owns(name string) (bare string, owns bool) {
	bare, who, typed := strings.Cut(name, "@")
	return bare, typed == (o.uid != 0) && who == o.name
}

// verify makes sure that a leader, whose pidfd is held, is in a container that its owner may give away. [machine.Leader.Alive]
// is asked last, and vouches for all that was read by number.
func (o owner) verify(leader *machine.Leader, gone func() error) error {
	host, err := machine.SharesWithHost(leader.PID, "mnt")
	var its uint32
	if err == nil {
		its, err = machine.UserNamespaceOwner(leader.PID)
	}
	switch {
	case !leader.Alive() || errors.Is(err, fs.ErrNotExist):
		return gone()
	case err != nil:
		return err
	case host:
		return fail.New(fail.NotAContainer, "", "process %d is not in a container: it has the host's mounts", leader.PID)
	case o.uid != 0 && its != o.uid:
		return fail.New(fail.NotAContainer, "", "process %d is not in a container of user %s: "+
			"its user namespace belongs to user %d", leader.PID, o.name, its)
	}
	return nil
}
