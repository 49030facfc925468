//go:build integration

package main

import (
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A command has the capabilities that it was given, and never more than the machine may have.
func TestCapabilities(t *testing.T) {
	const (
		netRaw = "0000000000002000"
		none   = "0000000000000000"
		show   = `grep -E '^Cap(Prm|Bnd)' /proc/self/status | cut -f 2 | sort -u`
	)
	for _, how := range [][]string{nil, {"--direct"}} {
		for _, machine := range []string{booted, userns} {
			for option, want := range map[string]string{"--capabilities=CAP_NET_RAW": netRaw, "--capabilities=": none} {
				got := attachTo(t, append(append([]string{}, how...), option, machine, "sh", "-c", show)...)
				if got.code != 0 || got.stdout != want+"\n" {
					t.Errorf("%q %s in %s: %+v, want %s", how, option, machine, got, want)
				}
			}
		}
	}
	set := func(args ...string) uint64 {
		n, err := strconv.ParseUint(strings.TrimSpace(succeeds(t, append(args, booted, "sh", "-c", show)...)), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	all, less := set(), set("--capabilities=~sys_ptrace,sys_chroot")
	if two := uint64(1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_CHROOT); all&two != two || less != all&^two {
		t.Errorf("all are %#x, without two %#x", all, less)
	}
	// systemd-nspawn's machines may not change the clock.
	got := attachTo(t, "--capabilities=CAP_SYS_TIME,CAP_KILL", booted, "true")
	if got.code != 125 || !strings.Contains(got.stderr, `may not have CAP_SYS_TIME`) || !strings.Contains(got.stderr, "hint: ") {
		t.Errorf("more than the machine's: %+v", got)
	}
}
