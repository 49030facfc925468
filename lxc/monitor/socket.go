package monitor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// claim is a socket that says that it is a container's command socket.
type claim struct {
	address string // without the leading NUL
	lxcpath string // empty if the address has only a hash
	name    string
	inode   uint64
}

// suffix ends the addresses of command sockets.
const suffix = "/command"

// claims lists the command sockets of the caller's network namespace.
func claims() ([]claim, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSockets(f)
}

// parseSockets reads /proc/net/unix:
//
//	Num       RefCount Protocol Flags    Type St Inode Path
//	0000…910: 00000002 00000000 00010000 0001 01 17163 @/var/lib/lxc/web/command
//
// A user may have put line breaks and more into an address: what is read here is only where to look.
func parseSockets(r io.Reader) ([]claim, error) {
	const acceptsConnections = "00010000" // __SO_ACCEPTCON, linux/net.h
	var list []claim
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.SplitN(strings.TrimSpace(lines.Text()), " ", 7)
		if len(fields) != 7 || fields[3] != acceptsConnections {
			continue
		}
		inode, at, _ := strings.Cut(strings.TrimLeft(fields[6], " "), " ")
		c := claim{}
		var err error
		if c.inode, err = strconv.ParseUint(inode, 10, 64); err != nil || !strings.HasPrefix(at, "@") {
			continue
		}
		c.address = at[1:]
		whole, ok := strings.CutSuffix(c.address, suffix)
		if !ok {
			continue
		}
		if !strings.HasPrefix(whole, "lxc/") { // else it has only a hash
			c.lxcpath, c.name = path.Split(whole)
			c.lxcpath = path.Clean(c.lxcpath)
			if !path.IsAbs(whole) || !usable(c.name) || others(whole) {
				continue
			}
		}
		list = append(list, c)
	}
	return list, lines.Err()
}

// usable reports whether a name can be typed and printed.
func usable(name string) bool {
	_, err := machine.ParseRef("lxc:" + name)
	return err == nil && name != "." && name != ".."
}

// others reports whether a container belongs to Incus or LXD.
func others(container string) bool {
	for _, dir := range []string{"/var/lib/incus/", "/var/lib/lxd/", "/var/snap/lxd/", "/run/incus/", "/run/lxd/"} {
		if strings.HasPrefix(container, dir) {
			return true
		}
	}
	return false
}

// address returns what liblxc names the command socket (lxc_make_abstract_socket_name in liblxc's
// commands_utils.c): a path and name that do not fit, together with a NUL in front and one at the end,
// are replaced by their FNV-1a hash.
func address(lxcpath, name string) string {
	const room = len(unix.RawSockaddrUnix{}.Path) - 2
	whole := lxcpath + "/" + name
	if len(whole+suffix) < room {
		return whole + suffix
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(whole)) // never fails (package hash)
	return fmt.Sprintf("lxc/%016x%s", hash.Sum64(), suffix)
}

// errNobody says that nobody listens on a socket (any more).
var errNobody = errors.New("nobody listens")

// listener returns the user who listens on an abstract socket, as a uid of the caller's user namespace.
// The kernel noted it when listen was called (SO_PEERCRED, unix(7)). EAGAIN says that the listener does not
// accept connections, and that there are too many already.
func listener(ctx context.Context, address string) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// Without O_NONBLOCK, connecting to somebody who accepts nothing would wait until they do.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("making a socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: "@" + address})
	if errors.Is(err, unix.ECONNREFUSED) {
		return 0, errNobody
	}
	if err != nil {
		return 0, fmt.Errorf("connecting to the monitor at @%s: %w", address, err)
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("SO_PEERCRED of @%s: %w", address, err)
	}
	return peer.Uid, nil
}
