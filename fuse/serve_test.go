//go:build integration

package fuse

import (
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCloseDisconnects ends service with files open and a process waiting.
func TestCloseDisconnects(t *testing.T) {
	s := serve(t, files(t, "f", "dir/g"), Options{Writable: true})
	f, err := os.Open(s.path("f"))
	must(t, err)
	defer f.Close()
	host, err := os.OpenFile(s.host("f"), os.O_RDWR, 0)
	must(t, err)
	defer host.Close()
	must(t, unix.Flock(int(host.Fd()), unix.LOCK_EX))
	waiting := make(chan error)
	go func() { waiting <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	for s.Requests()["SETLKW"] == 0 {
		runtime.Gosched()
	}
	must(t, s.Close())
	if err := <-waiting; err == nil {
		t.Error("got a lock that the host holds")
	}
	if err := <-s.done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	_, err = os.Stat(s.path("dir/g"))
	wantErr(t, "stat", err, unix.ENOTCONN)
	_, err = os.ReadFile(s.path("f"))
	wantErr(t, "open", err, unix.ENOTCONN)
	_, err = io.ReadAll(f)
	wantErr(t, "read", err, unix.ENOTCONN)
	f.Close()
	s.once.Do(func() {})
	must(t, unix.Unmount(s.mnt, 0))
	must(t, s.Close())
}

// TestServeBeforeMount has the server wait for a superblock.
func TestServeBeforeMount(t *testing.T) {
	root, err := os.Open(files(t, "f"))
	must(t, err)
	defer root.Close()
	fs, err := New(Options{Root: root})
	must(t, err)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	copied, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	forMount := os.NewFile(uintptr(copied), "fuse")
	fs.tree.usesItself.Store(true)
	done := make(chan error)
	go func() { done <- fs.Serve(dev, Device) }()
	dir := tempDir(t)
	must(t, mountFuse(forMount, dir))
	must(t, forMount.Close())
	noPoll(t, dir)
	wantContent(t, dir+"/f", "f")
	must(t, unix.Unmount(dir, 0))
	must(t, <-done)
	must(t, fs.Close())
}

// TestCloseWithoutServe releases what New took, once.
func TestCloseWithoutServe(t *testing.T) {
	root, err := os.Open(files(t))
	must(t, err)
	defer root.Close()
	before := openFDs(t)
	fs, err := New(Options{Root: root})
	must(t, err)
	must(t, fs.Close())
	must(t, fs.Close())
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, fs.Serve(dev, Device))
}

// TestThreadsStay has others use the CPUs: that server threads wait for one must not have more of them started, only to end again.
func TestThreadsStay(t *testing.T) {
	tree := files(t, "f")
	root, err := os.Open(tree)
	must(t, err)
	defer root.Close()
	s := serveAs(t, tree, Options{Root: root}, Device)
	for range 4 * runtime.NumCPU() {
		burn := exec.Command("sh", "-c", "while :; do :; done")
		must(t, burn.Start())
		t.Cleanup(func() {
			_ = burn.Process.Kill()
			_ = burn.Wait()
		})
	}
	end := time.Now().Add(3 * time.Second)
	var clients sync.WaitGroup
	for range 4 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for time.Now().Before(end) {
				f, err := os.Open(s.path("f"))
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
			}
		}()
	}
	threads := make(map[int32]struct{})
	for time.Now().Before(end) {
		s.conn.mu.Lock()
		for server := range s.conn.servers {
			threads[server.tid.Load()] = struct{}{}
		}
		s.conn.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	clients.Wait()
	const most = 12
	if len(threads) > most {
		t.Errorf("there were %d server threads, want at most %d", len(threads), most)
	}
}
