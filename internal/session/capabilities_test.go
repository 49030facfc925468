package session

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestCapabilities(t *testing.T) {
	const machine = uint64(1<<unix.CAP_CHOWN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_PTRACE)
	for _, c := range []struct {
		names []string
		want  uint64
	}{
		{[]string{}, 0},
		{[]string{"CAP_NET_RAW"}, 1 << unix.CAP_NET_RAW},
		{[]string{"net_raw", "Cap_Chown", "CAP_NET_RAW"}, 1<<unix.CAP_NET_RAW | 1<<unix.CAP_CHOWN},
		{[]string{"~CAP_NET_RAW", "~CAP_SYS_ADMIN"}, 1<<unix.CAP_CHOWN | 1<<unix.CAP_SYS_PTRACE},
	} {
		parsed, err := ParseCapabilities(c.names)
		if err != nil {
			t.Errorf("%q: %v", c.names, err)
			continue
		}
		if got, err := parsed.limit(machine, "web"); err != nil || got != c.want {
			t.Errorf("%q leave %#x, %v, want %#x", c.names, got, err, c.want)
		}
	}
	for _, names := range [][]string{{""}, {"CAP_"}, {"CAP_NONE"}, {"~"}, {"CAP_CHOWN", "~CAP_KILL"}, {"~CAP_KILL", "CAP_CHOWN"}, {"CAP_CHOWN,CAP_KILL"}} {
		if c, err := ParseCapabilities(names); !fail.Is(err, fail.InvalidArgument) {
			t.Errorf("%q: %+v, %v", names, c, err)
		}
	}
	parsed, err := ParseCapabilities([]string{"chown", "sys_admin"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parsed.limit(machine, "web"); !fail.Is(err, fail.InvalidArgument) ||
		err.Error() != `machine "web" may not have CAP_SYS_ADMIN, and so may no command in it` {
		t.Errorf("more than the machine's: %#x, %v", got, err)
	}
	if got, err := (*Capabilities)(nil).limit(machine, "web"); err != nil || got != machine {
		t.Errorf("no limit: %#x, %v", got, err)
	}
}
