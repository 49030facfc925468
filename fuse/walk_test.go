//go:build integration

package fuse

import (
	"testing"
)

// BenchmarkWalk lists /usr with attributes again and again: on the host, and served, with directories that are opened and that are
// not.
func BenchmarkWalk(b *testing.B) {
	walk := func(b *testing.B, root string) {
		find := func() { shell(b, `find "$1" -printf '%s\n' >/dev/null`, root) }
		find()
		find()
		for b.Loop() {
			find()
		}
	}
	asked := func(uint32) bool { return true }
	for _, c := range []struct {
		name string
		o    Options
	}{{"opened", Options{Allow: asked}}, {"unopened", Options{}}} {
		b.Run("native before "+c.name, func(b *testing.B) { walk(b, "/usr") })
		b.Run(c.name, func(b *testing.B) {
			c.o.Watch = WatchTimeout
			walk(b, serve(b, "/usr", c.o).mnt)
		})
	}
}
