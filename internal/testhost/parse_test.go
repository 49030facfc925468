package testhost

import (
	"reflect"
	"strings"
	"testing"
)

func TestMirrorIsTheArchiveThatAptUses(t *testing.T) {
	for _, test := range []struct{ name, targets, want string }{
		{"none", "", defaultMirror},
		{"the archive, not security updates", "Debian|Debian-Security|http://mirror.example/debian-security/\n" +
			"Debian|Debian|http://mirror.example/debian/\n", "http://mirror.example/debian"},
		{"not somebody else's packages", "Docker|Docker CE|https://download.example/debian/\n" +
			"Debian|Debian|https://mirror.example/debian/\n", "https://mirror.example/debian"},
		{"before the first apt-get update", "||http://mirror.example/debian-security/\n||http://mirror.example/debian/\n", "http://mirror.example/debian"},
		{"a snapshot", "Debian|Debian|https://snapshot.example/archive/debian/20250520T000000Z/\n", "https://snapshot.example/archive/debian/20250520T000000Z"},
		{"a CD", "Debian|Debian|cdrom:[Debian 13]/\n", defaultMirror},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := mirrorFrom(test.targets); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestAptOptionsAreProxiesAndDates(t *testing.T) {
	got := aptOptionsFrom(`Acquire "";
Acquire::Check-Valid-Until "false";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::Proxy "";
Acquire::cdrom::mount "/media/cdrom/";
`)
	want := []string{
		`--aptopt=Acquire::Check-Valid-Until "false";`,
		`--aptopt=Acquire::http::Proxy "http://proxy.example:3128";`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestKeyChangesWithTheRecipe(t *testing.T) {
	one := []recipe{{Name: "host", Packages: []string{"systemd"}}}
	two := []recipe{{Name: "host", Packages: []string{"systemd", "dbus"}}}
	again := []recipe{{Name: "host", Packages: []string{"systemd"}}}
	if key(one) == key(two) {
		t.Error("two recipes have the same key")
	}
	if key(one) != key(again) {
		t.Errorf("one recipe has two keys, %s and %s", key(one), key(again))
	}
}

func TestParseMount(t *testing.T) {
	for _, test := range []struct {
		line string
		want mount
	}{
		{
			`36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue`,
			mount{device: "98:0", point: "/mnt/a b", fstype: "ext3", options: []string{"rw", "errors=continue"}},
		},
		{
			`31 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd`,
			mount{device: "0:27", point: "/sys/fs/cgroup/systemd", fstype: "cgroup", options: []string{"rw", "name=systemd"}},
		},
	} {
		got, err := parseMount(test.line)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %+v, %v; want %+v", test.line, got, err, test.want)
		}
	}
	for _, line := range []string{"", "36 35 98:0 / /", "36 35 98:0 / / rw - ext3"} {
		if _, err := parseMount(line); err == nil {
			t.Errorf("no error for %q", line)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - ext3 /dev/root rw`)
	f.Add(`36 35 98:0 / /\0 rw - a b c`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, err := parseMount(line); err == nil && (m.point == "" || m.fstype == "") {
			t.Errorf("%q: no mount point or type", line)
		}
	})
}

func TestProcessStatWithAnOddName(t *testing.T) {
	stat := []byte("4242 (a) b (c) S 17 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 316570 23 24 25\n")
	if start, err := parseStartTime(stat); err != nil || start != 316570 {
		t.Errorf("started at %d, %v", start, err)
	}
	if parent, err := parseParent(stat); err != nil || parent != 17 {
		t.Errorf("parent %d, %v", parent, err)
	}
	for _, bad := range []string{"", "4242 (a) S", strings.Repeat(") ", 30)} {
		if start, err := parseStartTime([]byte(bad)); err == nil {
			t.Errorf("%q: started at %d", bad, start)
		}
	}
}

func TestParseLdd(t *testing.T) {
	got := parseLdd("\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n" +
		"\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n")
	want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseExit(t *testing.T) {
	for _, test := range []struct {
		properties string
		code       int
		ok         bool
	}{
		{"ExecMainCode=1\nExecMainStatus=7\n", 7, true},
		{"ExecMainStatus=9\nExecMainCode=2\n", 137, true},
		{"ExecMainCode=3\nExecMainStatus=6\n", 134, true},
		{"ExecMainCode=0\nExecMainStatus=0\n", 0, false}, // it has not run
		{"", 0, false},
	} {
		if code, ok := parseExit(test.properties); code != test.code || ok != test.ok {
			t.Errorf("%q: got %d, %v", test.properties, code, ok)
		}
	}
}

func TestPassedOnIsWhatTestsAreToldWith(t *testing.T) {
	got := passedOn([]string{"PATH=/bin", "CNTR_DEBUG=1", "CI=true", "TEST_SIZE=a=b", "SECRET=x"})
	want := []string{"--setenv=CNTR_DEBUG=1", "--setenv=CI=true", "--setenv=TEST_SIZE=a=b"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestProcessIsNotTakenForAnother(t *testing.T) {
	self, err := identify(1)
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("process 1 is not alive")
	}
	self.Start++
	if self.alive() {
		t.Error("a process with another start time is taken for the same")
	}
}
