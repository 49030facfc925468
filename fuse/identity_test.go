//go:build integration

package fuse

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSetIDBitsAreCleared(t *testing.T) {
	passthroughModes(t, func(t *testing.T, o Options) {
		both(t, o, func(dir string) string {
			var log strings.Builder
			for i, what := range []string{"write", "append", "truncate", "ftruncate", "open O_TRUNC", "chown", "fallocate", "root write", "root chown"} {
				for _, bits := range []uint32{0o6777, 0o2767, 0o4755 | 0o22} {
					path := fmt.Sprintf("%s/f%d-%o", dir, i, bits)
					// Made without an open file, which could still be open in passthrough mode for the server.
					must(t, unix.Mknod(path, unix.S_IFREG|0o644, 0))
					must(t, unix.Truncate(path, 7))
					must(t, os.Chown(path, 0, 100))
					must(t, unix.Chmod(path, bits))
					act := func() {
						var err error
						switch what {
						case "write", "append", "root write":
							flags := os.O_WRONLY
							if what == "append" {
								flags |= os.O_APPEND
							}
							var f *os.File
							if f, err = os.OpenFile(path, flags, 0); err == nil {
								_, err = f.WriteString("x")
								f.Close()
							}
						case "truncate":
							err = unix.Truncate(path, 3)
						case "ftruncate", "fallocate":
							var f *os.File
							if f, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
								if what == "ftruncate" {
									err = f.Truncate(2)
								} else {
									err = unix.Fallocate(int(f.Fd()), 0, 0, 8192)
								}
								f.Close()
							}
						case "open O_TRUNC":
							var f *os.File
							if f, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0); err == nil {
								f.Close()
							}
						case "chown", "root chown":
							err = unix.Lchown(path, 1234, -1)
						}
						fmt.Fprintf(&log, "%s %o: %v, ", what, bits, err)
					}
					if strings.HasPrefix(what, "root") {
						act()
					} else {
						asUser(t, 1000, 1000, nil, act)
					}
					fmt.Fprintln(&log, mode(t, path))
				}
			}
			return log.String()
		})
	})
}

func TestOwnersAndModesOfNewFiles(t *testing.T) {
	both(t, Options{Writable: true}, func(dir string) string {
		var log strings.Builder
		must(t, os.Mkdir(dir+"/setgid", 0o777))
		must(t, os.Chown(dir+"/setgid", 0, 500))
		must(t, unix.Chmod(dir+"/setgid", 0o2777))
		must(t, os.Mkdir(dir+"/plain", 0o777))
		must(t, unix.Chmod(dir+"/plain", 0o777))
		for _, umask := range []int{0, 0o022, 0o077} {
			for _, groups := range [][]uint32{nil, {500}} {
				asUser(t, 1000, 1001, groups, func() {
					must(t, unix.Unshare(unix.CLONE_FS))
					unix.Umask(umask)
					for _, parent := range []string{"setgid", "plain"} {
						base := fmt.Sprintf("%s/%s/%o-%d-", dir, parent, umask, len(groups))
						fd, err := unix.Open(base+"f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o6777)
						if err == nil {
							unix.Close(fd)
						}
						errs := []error{
							err,
							unix.Mkdir(base+"d", 0o1777),
							unix.Mknod(base+"p", unix.S_IFIFO|0o666, 0),
							unix.Mknod(base+"r", unix.S_IFREG|0o2775, 0),
							unix.Symlink("x", base+"l"),
						}
						fmt.Fprint(&log, parent, " ", umask, groups, errs, ": ")
						for _, kind := range []string{"f", "d", "p", "r", "l"} {
							fmt.Fprint(&log, mode(t, base+kind), ", ")
						}
						fmt.Fprintln(&log)
					}
				})
			}
		}
		return log.String()
	})
}

// acl makes the value of a POSIX ACL attribute of tag, permissions and id.
func acl(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = append(b, byte(e[0]), byte(e[0]>>8), byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return b
}

const noID = 0xffffffff

func TestPOSIXACLs(t *testing.T) {
	get := func(path, name string) string {
		buf := make([]byte, 200)
		n, err := unix.Getxattr(path, name, buf)
		return fmt.Sprintf("%x %v", buf[:max(n, 0)], err)
	}
	forUser := acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, 1000}, [3]uint32{4, 0, noID}, [3]uint32{8, 6, 600}, [3]uint32{0x10, 6, noID}, [3]uint32{0x20, 0, noID})
	both(t, Options{Writable: true}, func(dir string) string {
		var log strings.Builder
		must(t, os.WriteFile(dir+"/f", []byte("x"), 0o600))
		must(t, unix.Setxattr(dir+"/f", aclAccess, forUser, 0))
		must(t, os.Mkdir(dir+"/d", 0o777))
		must(t, unix.Chmod(dir+"/d", 0o777))
		must(t, unix.Setxattr(dir+"/d", aclDefault, forUser, 0))
		fmt.Fprintln(&log, mode(t, dir+"/f"), get(dir+"/f", aclAccess))
		for _, who := range []struct {
			uid    uint32
			groups []uint32
		}{{1000, nil}, {1001, nil}, {1001, []uint32{600}}} {
			asUser(t, who.uid, who.uid, who.groups, func() {
				_, err := os.ReadFile(dir + "/f")
				fd, werr := unix.Open(dir+"/f", unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if werr == nil {
					unix.Close(fd)
				}
				fmt.Fprintln(&log, who, errors.Unwrap(orNil(err)), werr)
				name := fmt.Sprintf("%s/d/%d-%d", dir, who.uid, len(who.groups))
				must(t, os.WriteFile(name, nil, 0o666))
				must(t, os.Mkdir(name+"d", 0o777))
				fmt.Fprintln(&log, mode(t, name), get(name, aclAccess), mode(t, name+"d"), get(name+"d", aclDefault))
			})
		}
		// Setting an ACL as one who is not in the file's group takes the set-gid bit.
		must(t, os.WriteFile(dir+"/g", nil, 0o600))
		must(t, os.Chown(dir+"/g", 1000, 600))
		must(t, unix.Chmod(dir+"/g", 0o2770))
		asUser(t, 1000, 1000, nil, func() {
			fmt.Fprintln(&log, unix.Setxattr(dir+"/g", aclAccess, forUser, 0), mode(t, dir+"/g"))
		})
		must(t, os.Chmod(dir+"/f", 0o640))
		fmt.Fprintln(&log, get(dir+"/f", aclAccess), unix.Removexattr(dir+"/f", aclAccess), mode(t, dir+"/f"))
		return log.String()
	})
}

func orNil(err error) error {
	if err == nil {
		return fmt.Errorf("%w", errors.New("ok"))
	}
	return err
}

func TestACLsAreMapped(t *testing.T) {
	ranges := []IDRange{{Tree: 0, Session: 100000, Count: 1000}}
	s := serve(t, files(t, "f"), Options{Writable: true, IDs: IDMap{UID: ranges, GID: ranges}})
	e := func(user, group uint32) []byte {
		return acl([3]uint32{1, 6, noID}, [3]uint32{2, 4, user}, [3]uint32{4, 0, noID}, [3]uint32{8, 6, group}, [3]uint32{0x10, 6, noID}, [3]uint32{0x20, 0, noID})
	}
	buf := make([]byte, 100)
	must(t, unix.Setxattr(s.host("f"), aclAccess, e(7, 8), 0))
	n, err := unix.Getxattr(s.path("f"), aclAccess, buf)
	if err != nil || string(buf[:n]) != string(e(100007, 100008)) {
		t.Errorf("the session sees %x, %v", buf[:max(n, 0)], err)
	}
	must(t, unix.Setxattr(s.path("f"), aclAccess, e(100009, 100010), 0))
	n, err = unix.Getxattr(s.host("f"), aclAccess, buf)
	if err != nil || string(buf[:n]) != string(e(9, 10)) {
		t.Errorf("the host sees %x, %v", buf[:max(n, 0)], err)
	}
	wantErr(t, "ACL for an id without mapping", unix.Setxattr(s.path("f"), aclAccess, e(9, 10), 0), unix.EOVERFLOW)
}

func TestCallerIsNotRoot(t *testing.T) {
	tree := files(t, "secret", "mine", "shared/", "group")
	must(t, os.Chmod(tree+"/secret", 0o600))
	must(t, os.Chown(tree+"/mine", 1000, 1000))
	must(t, os.Chmod(tree+"/shared", 0o777))
	must(t, os.Chmod(tree+"/group", 0o640))
	must(t, os.Chown(tree+"/group", 0, 600))
	// The session's root is the caller: it owns what the caller owns, and root's files are nobody's.
	ids := []IDRange{{Tree: 1000, Session: 0, Count: 1}}
	s := serve(t, tree, Options{
		Writable: true, Passthrough: true, Cache: Cache{Entry: -1, Attr: -1},
		IDs: IDMap{UID: ids, GID: ids}, Caller: &Credential{UID: 1000, GID: 1000, Groups: []uint32{600}},
	})
	_, err := os.ReadFile(s.path("secret"))
	wantErr(t, "root's file, read by the caller's root", err, unix.EACCES)
	wantErr(t, "chown", os.Chown(s.path("secret"), 0, 0), unix.EPERM)
	wantErr(t, "chmod", os.Chmod(s.path("secret"), 0o777), unix.EPERM)
	wantErr(t, "unlink", os.Remove(s.path("secret")), unix.EACCES)
	wantErr(t, "create", os.WriteFile(s.path("new"), nil, 0o644), unix.EACCES)
	wantErr(t, "trusted xattr", unix.Setxattr(s.path("mine"), "trusted.x", nil, 0), unix.EPERM)
	wantErr(t, "mknod of a device", unix.Mknod(s.path("shared/dev"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))), unix.EPERM)
	wantContent(t, s.path("group"), "group")
	must(t, os.WriteFile(s.path("mine"), []byte("changed"), 0))
	must(t, os.WriteFile(s.path("shared/new"), []byte("new"), 0o600))
	if got := mode(t, s.host("shared/new")); got != "600 1000:1000" {
		t.Errorf("new file: %s", got)
	}
	wantContent(t, s.path("shared/new"), "new")
}

// What is shown to the session is no right: the root of a machine is shown root's files and the caller's as its own, and
// has the caller's rights.
func TestCallerShownAsRootHasTheCallersRights(t *testing.T) {
	tree := files(t, "secret", "mine", "group", "theirs/f", "open/")
	must(t, os.Chmod(tree+"/secret", 0o600))
	must(t, os.Chown(tree+"/mine", 1000, 1000))
	must(t, os.Chmod(tree+"/mine", 0o600))
	must(t, os.Chmod(tree+"/group", 0o640))
	must(t, os.Chown(tree+"/group", 0, 600))
	must(t, os.Chmod(tree+"/theirs", 0o700))
	must(t, os.Chown(tree+"/theirs", 1001, 1001))
	must(t, os.Chmod(tree+"/open", 0o777))
	ids := []IDRange{{Tree: 1000, Session: 0, Count: 1}, {Tree: 0, Session: 0, Count: 1000}, {Tree: 1001, Session: 1001, Count: 1000}}
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			o := v.o
			o.Writable, o.IDs, o.Caller = true, IDMap{UID: ids, GID: ids}, &Credential{UID: 1000, GID: 1000, Groups: []uint32{600}}
			s := serve(t, tree, o)
			for _, name := range []string{"secret", "mine"} {
				if got := mode(t, s.path(name)); got != "600 0:0" {
					t.Errorf("%s is shown as %s", name, got)
				}
			}
			wantContent(t, s.path("mine"), "mine")
			wantContent(t, s.path("group"), "group")
			_, err := os.ReadFile(s.path("secret"))
			wantErr(t, "read of root's file", err, unix.EACCES)
			_, err = os.ReadDir(s.path("theirs"))
			wantErr(t, "list of another user's directory", err, unix.EACCES)
			_, err = os.Stat(s.path("theirs/f"))
			wantErr(t, "stat in another user's directory", err, unix.EACCES)
			_, err = os.ReadFile(s.path("theirs/f"))
			wantErr(t, "read in another user's directory", err, unix.EACCES)
			for _, name := range []string{"secret", "group"} {
				wantErr(t, "write", os.WriteFile(s.path(name), nil, 0), unix.EACCES)
				wantErr(t, "truncate", os.Truncate(s.path(name), 0), unix.EACCES)
				wantErr(t, "chmod", os.Chmod(s.path(name), 0o777), unix.EPERM)
				wantErr(t, "unlink", os.Remove(s.path(name)), unix.EACCES)
				wantErr(t, "rename", os.Rename(s.path(name), s.path("open/x")), unix.EACCES)
				wantErr(t, "setxattr", unix.Setxattr(s.path(name), "user.x", nil, 0), unix.EACCES)
			}
			// A name and an id that is two on the tree: it is the caller's.
			wantErr(t, "chown", os.Chown(s.path("secret"), 0, 0), unix.EPERM)
			must(t, os.Chown(s.path("mine"), 0, 0))
			if got := mode(t, s.host("mine")); got != "600 1000:1000" {
				t.Errorf("the caller's file is now %s", got)
			}
		})
	}
}
