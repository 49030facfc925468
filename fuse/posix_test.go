//go:build integration

package fuse

import (
	"fmt"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// variant is one way to serve a tree that the same tests run in.
type variant struct {
	name string
	o    Options
}

// variants is the matrix of options.
func variants() []variant {
	ids := []IDRange{{Tree: 0, Session: 0, Count: 1000}, {Tree: 100000, Session: 1000, Count: 64000}}
	short := Cache{Entry: -1, Attr: -1, Negative: -1}
	return []variant{
		{"plain", Options{}},
		{"passthrough", Options{Passthrough: true}},
		{"passthrough, few descriptors, no caches", Options{Passthrough: true, Descriptors: 2, Cache: short}},
		{"few descriptors, id map", Options{Descriptors: 2, IDs: IDMap{UID: ids, GID: ids}}},
		{"no caches", Options{Cache: short}},
		{"passthrough, caches forever, id map", Options{
			Passthrough: true, IDs: IDMap{UID: ids, GID: ids}, Cache: Cache{Forever, Forever, Forever},
		}},
		{"checked opener", Options{Allow: func(tid uint32) bool { return tid != 0 }}},
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
			s := serve(t, files(t), v.o)
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
