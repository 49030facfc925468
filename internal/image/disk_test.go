package image

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"strings"
	"testing"
)

// entry is a partition of a table that a test writes.
type entry struct {
	kind        guid
	first, last uint64
	flags       uint64
}

// disk writes a disk of so many sectors with a partition table.
func disk(sector, sectors uint64, list ...entry) []byte {
	d := make([]byte, sector*sectors)
	le := binary.LittleEndian
	entries := d[2*sector : 2*sector+128*128]
	for i, e := range list {
		at := entries[128*i:]
		copy(at, e.kind[:])
		at[16] = byte(i + 1)
		le.PutUint64(at[32:], e.first)
		le.PutUint64(at[40:], e.last)
		le.PutUint64(at[48:], e.flags)
	}
	h := d[sector : sector+92]
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return d
}

func TestProbe(t *testing.T) {
	if _, known := rootTypes[runtime.GOARCH]; !known {
		t.Fatalf("no partition type for the root file system of %s", runtime.GOARCH)
	}
	root, usr := rootTypes[runtime.GOARCH], usrTypes[runtime.GOARCH]
	boot := newGUID(0xc12a7328, 0xf81f, 0x11d2, 0xba4b, 0x00a0c93ec93b)
	with := func(d []byte, at int, magic string) []byte {
		copy(d[at:], magic)
		return d
	}
	table := func(list ...entry) []byte { return with(disk(512, 2048, list...), 512*1000, "hsqs") }
	for what, c := range map[string]struct {
		disk   []byte
		format string
		start  uint64
		size   uint64
		wrong  string
	}{
		"bare squashfs":             {disk: with(make([]byte, 4096), 0, "hsqs"), format: "squashfs", size: 4096},
		"bare ext4":                 {disk: with(make([]byte, 4096), 1080, "\x53\xef"), format: "ext4", size: 4096},
		"bare erofs":                {disk: with(make([]byte, 4096), 1024, "\xe2\xe1\xf5\xe0"), format: "erofs", size: 4096},
		"bare xfs":                  {disk: with(make([]byte, 4096), 0, "XFSB"), format: "xfs", size: 4096},
		"bare btrfs":                {disk: with(make([]byte, 1<<17), 0x10040, "_BHRfS_M"), format: "btrfs", size: 1 << 17},
		"the root partition":        {disk: table(entry{boot, 40, 49, 0}, entry{root, 1000, 1999, 0}), format: "squashfs", start: 512000, size: 512000},
		"one that will do":          {disk: table(entry{boot, 40, 49, 0}, entry{genericLinux, 1000, 1999, 0}), format: "squashfs", start: 512000, size: 512000},
		"the type before that":      {disk: table(entry{genericLinux, 40, 49, 0}, entry{root, 1000, 1999, 0}), format: "squashfs", start: 512000, size: 512000},
		"the second, not automatic": {disk: table(entry{root, 40, 49, noAuto}, entry{root, 1000, 1999, 0}), format: "squashfs", start: 512000, size: 512000},
		"sectors of 4096 bytes": {
			disk:   with(disk(4096, 512, entry{root, 100, 199, 0}), 409600, "hsqs"),
			format: "squashfs", start: 409600, size: 409600,
		},
		"nothing":                   {disk: nil, wrong: "neither a partition table nor a file system"},
		"a text":                    {disk: []byte(strings.Repeat("text ", 2000)), wrong: "neither"},
		"no root":                   {disk: table(entry{boot, 40, 49, 0}), wrong: "no partition with a root file system"},
		"two that may be":           {disk: table(entry{genericLinux, 40, 49, 0}, entry{genericLinux, 1000, 1999, 0}), wrong: "2 of its partitions"},
		"usr apart":                 {disk: table(entry{root, 1000, 1999, 0}, entry{usr, 40, 49, 0}), wrong: "/usr on a partition of its own"},
		"an empty root":             {disk: table(entry{root, 100, 199, 0}), wrong: "none of squashfs, erofs"},
		"a partition past the end":  {disk: table(entry{root, 1000, 2048, 0}), wrong: "cut off: a partition ends at sector 2048 of 2048"},
		"a partition back to front": {disk: table(entry{root, 1000, 999, 0}), wrong: "cut off"},
		"one of all numbers":        {disk: table(entry{root, 0, 1<<64 - 1, 0}), wrong: "cut off"},
		"a cut header":              {disk: table()[:590], wrong: "neither"},
		"a cut table":               {disk: table()[:2000], wrong: "its partition table is cut off"},
		"a changed header":          {disk: with(table(), 512+24, "x"), wrong: "checksum of its partition table"},
		"a changed entry":           {disk: with(table(), 1024+200, "x"), wrong: "checksum of its partitions"},
		"a long header":             {disk: with(table(), 512+12, "\xff\xff\xff\xff"), wrong: "the header of its partition table has 4294967295 bytes"},
	} {
		d, err := probe(bytes.NewReader(c.disk), uint64(len(c.disk)))
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: got %v, want %q", what, err, c.wrong)
			}
			continue
		}
		if err != nil || d.name != c.format || d.root.span != (span{c.start, c.size}) || d.hashes != nil {
			t.Errorf("%s: got %+v, %v", what, d, err)
		}
	}
}

func FuzzProbe(f *testing.F) {
	le := binary.LittleEndian
	for _, last := range []uint64{2, 60, 1<<64 - 1} {
		d := disk(512, 64, entry{rootTypes["amd64"], 2, last, 0}, entry{genericLinux, 2, last, 0})[:1536]
		le.PutUint32(d[512+80:], 4) // entries; fewer bytes to try
		f.Add(d)
	}
	f.Add([]byte("hsqs"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Most of what is tried has the wrong sums, which says nothing of the rest.
		if len(data) >= 1024 && bytes.HasPrefix(data[512:], []byte("EFI PART")) {
			h := data[512:]
			from, n := 512*le.Uint64(h[72:]), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
			if size := uint64(len(data)); from < size && n <= size-from {
				le.PutUint32(h[88:], crc32.ChecksumIEEE(data[from:from+n]))
			}
			clear(h[16:20])
			if n := le.Uint32(h[12:]); n <= 512 {
				le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
			}
		}
		d, err := probe(bytes.NewReader(data), uint64(len(data)))
		if s := d.root.span; err == nil && (s.offset > uint64(len(data)) || s.size > uint64(len(data))-s.offset) {
			t.Errorf("%+v is outside of %d bytes", s, len(data))
		}
	})
}

func TestIDsOf(t *testing.T) {
	for _, c := range []struct{ uid, gid, first uint32 }{
		{0, 0, 0}, {1000, 1000, 0}, {65534, 65534, 0}, {65536, 65536, 65536}, {100000, 100000, 100000}, {100000, 0, 0}, {1<<32 - 2, 1<<32 - 2, 0},
	} {
		if got := idsOf(c.uid, c.gid); got[0].Outside != c.first {
			t.Errorf("of %d:%d: %+v", c.uid, c.gid, got)
		}
	}
}

func TestParseEnviron(t *testing.T) {
	got := parseEnviron("# comment\nPATH=/a:/b\n  export EDITOR=\"vi -e\"\nQ='x y'\n=no\n1A=no\nA B=no\nnothing\nNUL=\x00\nLAST=x=y")
	if want := "PATH=/a:/b|EDITOR=vi -e|Q=x y|LAST=x=y"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzParseEnviron(f *testing.F) {
	f.Add("PATH=/a\nexport B='c'\n\"=\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, v := range parseEnviron(text) {
			name, _, ok := strings.Cut(v, "=")
			if !ok || !isName(name) || strings.ContainsAny(v, "\x00\n") {
				t.Errorf("got %q", v)
			}
		}
	})
}

func TestParseRef(t *testing.T) {
	for s, want := range map[string]struct {
		ref   Ref
		shown string
	}{
		"":              {Ref{}, "host"},
		"host":          {Ref{}, "host"},
		"/":             {Ref{Path: "/"}, "/"},
		"/srv//x/../t/": {Ref{Path: "/srv/t"}, "/srv/t"},
		"/srv/a:b":      {Ref{Path: "/srv/a:b"}, "/srv/a:b"},
		"tools":         {Ref{Name: "tools"}, "tools"},
		"docker:tools":  {Ref{Machine: "docker:tools"}, "docker:tools"},
		"machine:web":   {Ref{Machine: "web"}, "machine:web"},
	} {
		if got, err := ParseRef(s); err != nil || got != want.ref || got.String() != want.shown {
			t.Errorf("%q: got %+v, shown as %s, %v", s, got, got, err)
		}
	}
	for _, s := range []string{"a/b", "./x", "docker:", ":x", "machine:", "a\nb", "docker:a/b"} {
		if got, err := ParseRef(s); err == nil {
			t.Errorf("%q: got %+v", s, got)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("machine:docker:x")
	f.Add("/a/../..")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseRef(s)
		if err != nil {
			return
		}
		if again, err := ParseRef(ref.String()); err != nil || again != ref {
			t.Errorf("%q is %+v, but %q is %+v, %v", s, ref, ref, again, err)
		}
	})
}
