package session

import (
	"slices"
	"testing"
)

const testPasswd = `root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
broken:x:
huge:x:4294967295:1::/:/bin/sh
1000:x:7:7::/seven:/bin/sh
app:x:1000:1001::/srv/app:/bin/sh`

func TestParsePasswd(t *testing.T) {
	for _, test := range []struct {
		user string
		want account
		ok   bool
	}{
		{"root", account{name: "root", home: "/root"}, true},
		{"www-data", account{name: "www-data", uid: 33, gid: 33, home: "/var/www"}, true},
		{"app", account{name: "app", uid: 1000, gid: 1001, home: "/srv/app"}, true},
		{"33", account{name: "www-data", uid: 33, gid: 33, home: "/var/www"}, true},
		{"4711", account{name: "4711", uid: 4711, gid: 4711, home: "/"}, true},
		{"broken", account{}, false},
		{"huge", account{}, false},
		{"4294967295", account{}, false},
		{"-1", account{}, false},
		{"nosuch", account{}, false},
	} {
		got, ok := parsePasswd(testPasswd, test.user)
		if ok != test.ok || got.name != test.want.name || got.uid != test.want.uid || got.gid != test.want.gid ||
			got.home != test.want.home {
			t.Errorf("%q: got %+v, %v; want %+v, %v", test.user, got, ok, test.want, test.ok)
		}
	}
	if a, ok := parsePasswd("", "root"); !ok || a.uid != 0 || a.home != "/root" {
		t.Errorf("root of a machine without users: %+v, %v", a, ok)
	}
}

func TestParseGroups(t *testing.T) {
	const group = "root:x:0:\nadm:x:4:app,root\nown:x:1001:app\nbad:x:y:app\nmail:x:8:apple\nlast:x:9:app"
	got := parseGroups(group, account{name: "app", gid: 1001})
	if want := []uint32{4, 9}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWithSystemUsers(t *testing.T) {
	const host = "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\ntcpdump:x:108:113::/:/bin/false\n" +
		"www-data:x:33:33::/:/bin/false\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n"
	if got, want := withSystemUsers("root:x:0:0::/:/bin/sh\nwww-data:x:99:99::/:/x", host),
		"root:x:0:0::/:/bin/sh\nwww-data:x:99:99::/:/x\ntcpdump:x:108:113::/:/bin/false\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzParseUsers(f *testing.F) {
	f.Add(testPasswd, "app")
	f.Add("a:b:c:d:e:f", "a")
	f.Fuzz(func(t *testing.T, file, user string) {
		if a, ok := parsePasswd(file, user); ok && (a.uid == 1<<32-1 || a.gid == 1<<32-1) {
			t.Errorf("%+v has an id that is none", a)
		}
		parseGroups(file, account{name: user})
	})
}
