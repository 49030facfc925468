package monitor

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseSockets(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
000000005a44d910: 00000002 00000000 00010000 0001 01 1716344 @/var/lib/lxc/web/command
000000005a44d911: 00000003 00000000 00000000 0001 03 1716345 @/var/lib/lxc/web/command
000000005a44d912: 00000002 00000000 00010000 0001 01     77 @/home/al ice/lxc/a b/command
000000005a44d913: 00000002 00000000 00010000 0001 01 78 /var/lib/lxc/path/command
000000005a44d914: 00000002 00000000 00010000 0001 01 79 @/var/lib/incus/containers/c1/command
000000005a44d915: 00000002 00000000 00010000 0001 01 80 @/var/lib/lxc/../command
000000005a44d916: 00000002 00000000 00010000 0001 01 81 @/command
000000005a44d917: 00000002 00000000 00010000 0001 01 82 @relative/command
000000005a44d918: 00000002 00000000 00010000 0001 01 83 @lxc/00112233aabbccdd/command
000000005a44d919: 00000002 00000000 00010000 0001 01 84
000000005a44d91a: 00000002 00000000 00010000 0001 01 85 @/srv/lxc/db/command
000000005a44d91b: 00000002 00000000 00010000 0001 01 8x @/srv/lxc/dc/command

00000: 00000002 00000000 00010000
`
	got, err := parseSockets(strings.NewReader(table))
	want := []claim{
		{"/var/lib/lxc/web/command", "/var/lib/lxc", "web", 1716344},
		{"/home/al ice/lxc/a b/command", "/home/al ice/lxc", "a b", 77},
		{"lxc/00112233aabbccdd/command", "", "", 83},
		{"/srv/lxc/db/command", "/srv/lxc", "db", 85},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%+v, want\n%+v", err, got, want)
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add("0: 00000002 00000000 00010000 0001 01 17 @/var/lib/lxc/web/command\n")
	f.Fuzz(func(t *testing.T, table string) {
		list, _ := parseSockets(strings.NewReader(table)) // lines may be too long
		for _, c := range list {
			if c.name != "" && (!usable(c.name) || !strings.HasPrefix(c.lxcpath, "/")) {
				t.Errorf("%+v", c)
			}
		}
	})
}

func TestAddress(t *testing.T) {
	for _, c := range []struct{ lxcpath, name, want string }{
		{"/var/lib/lxc", "web", "/var/lib/lxc/web/command"},
		{"/var/lib/lxc", strings.Repeat("x", 84), "/var/lib/lxc/" + strings.Repeat("x", 84) + "/command"},
	} {
		if got := address(c.lxcpath, c.name); got != c.want {
			t.Errorf("address(%q, %q) = %q, want %q", c.lxcpath, c.name, got, c.want)
		}
	}
	if got := address("/var/lib/lxc", strings.Repeat("x", 85)); !strings.HasPrefix(got, "lxc/") || len(got) != len("lxc/0011223344556677/command") {
		t.Errorf("a long name's is %q", got)
	}
}
