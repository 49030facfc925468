//go:build integration

package fuse

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInodeMemory measures what the server keeps for each inode that the kernel knows, and that it gives it back.
func TestInodeMemory(t *testing.T) {
	for _, handles := range []bool{true, false} {
		t.Run(fmt.Sprintf("handles %v", handles), func(t *testing.T) { inodeMemory(t, handles) })
	}
}

func inodeMemory(t *testing.T, handles bool) {
	const n = 400_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	tab, mnt, ds := newTable(), &mount{}, newDescs(1, nil)
	dir := &inode{node: rootNode}
	before := heap()
	for i := range uint64(n) {
		var handle []byte
		if handles {
			handle = binary.NativeEndian.AppendUint64(make([]byte, 4, 12), i) // as long as those of ext4
		}
		inode, _ := tab.lookup(inoKey{mnt, i}, handle, unix.S_IFREG, 1)
		if !handles {
			ds.place(inode, dir, fmt.Sprintf("file-%08d.conf", i))
		}
	}
	each := float64(heap()-before) / n
	t.Logf("%.0f bytes for each inode", each)
	if each >= 300 {
		t.Errorf("%.0f bytes for each inode, want less than 300", each)
	}
	var inodes []*inode
	tab.each(func(n *inode) { inodes = append(inodes, n) })
	for _, n := range inodes {
		ds.drop(n)
		tab.forget(n.node, 1)
	}
	inodes = nil
	if left := int64(heap()) - int64(before); left > 12<<20 {
		t.Errorf("%d bytes are left after everything was forgotten", left)
	}
	runtime.KeepAlive(tab)
	runtime.KeepAlive(ds)
}

// TestForgetIsExact walks a tree, lets the kernel drop its caches, and looks at what is left.
func TestForgetIsExact(t *testing.T) {
	s := serve(t, files(t, "a", "b", "d/c", "d/e/f", "l -> a"), Options{Writable: true})
	for range 3 {
		shell(t, `ls -lR "$1" >/dev/null; cat "$1"/a "$1"/d/c >/dev/null; ln "$1"/a "$1"/hard; rm "$1"/hard`, s.mnt)
	}
	if n := s.FileSystem.tree.inodes.len(); n != 8 {
		t.Errorf("%d inodes are known, want 8", n)
	}
	// Forgets are not waited for by the kernel. Its next request comes after them, though.
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	for i := 0; s.FileSystem.tree.inodes.len() > 1; i++ {
		if i == 1000 {
			t.Fatalf("%d inodes are known after the kernel dropped its caches", s.FileSystem.tree.inodes.len())
		}
		var st unix.Statfs_t
		must(t, unix.Statfs(s.mnt, &st))
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	}
}

// TestIdleDescriptorsAreClosed lets time pass.
func TestIdleDescriptorsAreClosed(t *testing.T) {
	s := serve(t, files(t, "a", "b", "c"), Options{Cache: Cache{Forever, Forever, Forever}})
	before := openFDs(t)
	compareTrees(t, s.tree, s.mnt)
	after := openFDs(t)
	n := 0
	for range 1000 { // files that were closed are released some time later
		s.FileSystem.tree.descs.age()
		if n = openFDs(t); n == before {
			break
		}
		runtime.Gosched()
	}
	if n != before || after == before {
		t.Errorf("%d descriptors before, %d after a walk, %d later", before, after, n)
	}
	compareTrees(t, s.tree, s.mnt)
}

func TestTableFindsForgottenInodes(t *testing.T) {
	tab, mnt := newTable(), &mount{}
	n, _ := tab.lookup(inoKey{mnt, 1}, []byte("x"), unix.S_IFREG, 0)
	again, fresh := tab.lookup(inoKey{mnt, 1}, []byte("x"), unix.S_IFREG, 0)
	if again != n || fresh || n.nlookup != 2 {
		t.Error("second lookup made another inode")
	}
	other, _ := tab.lookup(inoKey{mnt, 1}, []byte("y"), unix.S_IFREG, 0)
	if other == n {
		t.Error("another handle found the same inode")
	}
	if tab.forget(n.node, 1) != nil || tab.get(n.node) != n {
		t.Error("forgotten too early")
	}
	if tab.forget(n.node, 1) != n || tab.get(n.node) != nil {
		t.Error("not forgotten")
	}
	if tab.buried(n.node) == nil {
		t.Error("not remembered")
	}
	back, fresh := tab.lookup(inoKey{mnt, 1}, []byte("x"), unix.S_IFREG, 0)
	if back.node != n.node || !fresh || tab.get(n.node) != back {
		t.Error("another node id for the same file")
	}
	// What was forgotten long ago has another id, and its old id means nothing.
	tab.forget(back.node, 1)
	for i := range uint64(len(tab.graves.ring) + 1) {
		m, _ := tab.lookup(inoKey{mnt, 100 + i}, []byte("z"), unix.S_IFREG, 0)
		tab.forget(m.node, 1)
	}
	late, _ := tab.lookup(inoKey{mnt, 1}, []byte("x"), unix.S_IFREG, 0)
	if late.node == n.node || tab.get(n.node) != nil || tab.buried(n.node) != nil {
		t.Error("a node id was used twice")
	}
}

// TestInodesAreRecognisedByBirth looks a file up again and again: an old one is recognised, a young one identified by
// its handle each time.
func TestInodesAreRecognisedByBirth(t *testing.T) {
	s := serve(t, "/usr/bin", Options{Cache: Cache{Entry: -1, Attr: -1, Negative: -1}})
	tree := s.FileSystem.tree
	for range 3 {
		_, err := os.Lstat(s.path("env"))
		must(t, err)
	}
	var st unix.Stat_t
	must(t, unix.Lstat("/usr/bin/env", &st))
	root := tree.inodes.get(rootNode)
	tree.inodes.mu.RLock()
	n := tree.inodes.byIno[inoKey{root.mnt, st.Ino}]
	tree.inodes.mu.RUnlock()
	if n == nil || n.nlookup < 3 || n.next != nil {
		t.Fatalf("inode %d: %+v, want one that was looked up three times", st.Ino, n)
	}
	if n.birth == 0 {
		t.Errorf("the time of its birth is not known")
	}
	if again := tree.inodes.born(n.inoKey, n.kind, n.birth+1); again != nil {
		t.Error("an inode that was born later is taken for this one")
	}

	young := serve(t, files(t, "f"), Options{})
	wantContent(t, young.path("f"), "f")
	must(t, unix.Lstat(young.host("f"), &st))
	tree = young.FileSystem.tree
	root = tree.inodes.get(rootNode)
	if n := tree.inodes.byIno[inoKey{root.mnt, st.Ino}]; n == nil || n.birth != 0 {
		t.Errorf("a file that was just made: %+v, want no time of birth", n)
	}
}
