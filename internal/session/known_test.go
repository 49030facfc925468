package session

import (
	"os/exec"
	"testing"
)

// TestKnownThreads holds that a thread is looked at once, and no more believed when it has ended.
func TestKnownThreads(t *testing.T) {
	var k known
	looks := 0
	yes := func(uint32) bool { looks++; return true }
	no := func(uint32) bool { looks++; return false }

	var children []*exec.Cmd
	for range len(k.ring) + 1 {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // it may have ended
		children = append(children, cmd)
	}
	tid := func(i int) uint32 { return uint32(children[i].Process.Pid) }

	for range 2 {
		if k.check(tid(0), no) {
			t.Fatal("a stranger is let in")
		}
	}
	if looks != 2 {
		t.Fatalf("a stranger: %d looks for 2 checks", looks)
	}
	looks = 0
	if !k.check(tid(0), yes) || !k.check(tid(0), no) || looks != 1 {
		t.Fatalf("a member: %d looks, want 1 and to be let in", looks)
	}
	if err := children[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = children[0].Wait() // killed
	if k.check(tid(0), no) {
		t.Error("one that has ended is still believed")
	}
	for i := range children[1:] {
		k.check(tid(i+1), yes)
	}
	if n := len(k.pidfds); n > len(k.ring) {
		t.Errorf("%d threads are remembered, want at most %d", n, len(k.ring))
	}
}
