//go:build integration

package fuse

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Files of somebody else's can be opened on a file system that has no ACLs: squashfs, btrfs and ext4 without them, ramfs.
func TestTreeWithoutACLs(t *testing.T) {
	tree := tempDir(t)
	must(t, unix.Mount("ramfs", tree, "ramfs", 0, "mode=755"))
	t.Cleanup(func() { must(t, unix.Unmount(tree, 0)) })
	for name, mode := range map[string]os.FileMode{"group": 0o640, "others": 0o604, "all": 0o644} {
		must(t, os.WriteFile(tree+"/"+name, []byte(name), 0o600))
		must(t, os.Chown(tree+"/"+name, 7, 8))
		must(t, os.Chmod(tree+"/"+name, mode))
	}
	s := serve(t, tree, Options{Passthrough: true})
	open := func(name string) error {
		f, err := os.Open(s.path(name))
		if err == nil {
			f.Close()
		}
		return err
	}
	for _, name := range []string{"group", "others", "all"} {
		must(t, open(name)) // as root, who is not the owner
	}
	asUser(t, 1000, 8, nil, func() {
		for _, name := range []string{"group", "all"} {
			if err := open(name); err != nil {
				t.Errorf("of the group: %v", err)
			}
		}
		wantErr(t, "open of the group's", open("others"), unix.EACCES)
	})
	asUser(t, 1000, 1000, nil, func() {
		for _, name := range []string{"others", "all"} {
			if err := open(name); err != nil {
				t.Errorf("of others: %v", err)
			}
		}
		wantErr(t, "open of others'", open("group"), unix.EACCES)
	})
	var b [64]byte
	if _, err := unix.Getxattr(s.path("all"), "system.posix_acl_access", b[:]); err != unix.ENODATA && err != unix.EOPNOTSUPP {
		t.Errorf("the ACL of a file: %v", err)
	}
	s.unmount(t)
}
