//go:build integration

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// variant is one way to serve a tree that the same tests run in.
type variant struct {
	name    string
	o       Options
	overlay bool // the tree is on overlayfs, which has no file handles
}

// tree makes an empty tree.
func (v *variant) tree(t *testing.T) string {
	t.Helper()
	if !v.overlay {
		return files(t)
	}
	dir, err := os.MkdirTemp("", "overlay") // t.TempDir may have a comma in it
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	for _, name := range []string{"lower", "upper", "work", "tree"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	tree := filepath.Join(dir, "tree")
	must(t, unix.Mount("overlay", tree, "overlay", 0,
		fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)))
	t.Cleanup(func() { must(t, unix.Unmount(tree, 0)) })
	return tree
}

// variants is the matrix of options.
func variants() []variant {
	ids := []IDRange{{Tree: 0, Session: 0, Count: 1000}, {Tree: 100000, Session: 1000, Count: 64000}}
	short := Cache{Entry: -1, Attr: -1, Negative: -1}
	return []variant{
		{name: "plain"},
		{name: "as a session has it", o: Options{Passthrough: true, Watch: WatchTimeout}},
		{name: "passthrough", o: Options{Passthrough: true}},
		{
			name: "passthrough, few descriptors, no caches",
			o:    Options{Passthrough: true, Descriptors: 2, Cache: short},
		},
		{name: "few descriptors, id map", o: Options{Descriptors: 2, IDs: IDMap{UID: ids, GID: ids}}},
		{name: "no caches", o: Options{Cache: short}},
		{name: "passthrough, caches forever, id map", o: Options{
			Passthrough: true, IDs: IDMap{UID: ids, GID: ids}, Cache: Cache{Forever, Forever, Forever},
		}},
		{name: "as a session has it without a shield", o: Options{
			Passthrough: true, Watch: WatchTimeout, Allow: func(tid uint32) bool { return tid != 0 },
		}},
		{name: "no file handles, few descriptors", o: Options{Descriptors: 2}, overlay: true},
	}
}

// notPOSIX is a test that go-fuse leaves out itself: it wants two POSIX locks of one process to exclude one another, which
// they do on no file system.
const notPOSIX = "FcntlFlockLocksFile"

// TestPOSIX runs go-fuse's own suite.
func TestPOSIX(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			v.o.Writable = true
			s := serve(t, v.tree(t), v.o)
			for name, test := range posixtest.All {
				if name == notPOSIX {
					continue
				}
				t.Run(name, func(t *testing.T) {
					dir := s.path(name)
					must(t, os.Mkdir(dir, 0o755))
					test(t, dir)
					if err := os.RemoveAll(dir); err != nil {
						t.Error(fmt.Errorf("clean up: %w", err))
					}
				})
			}
		})
	}
}
