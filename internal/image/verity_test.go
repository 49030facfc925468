package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// verityBlock makes a superblock, as veritysetup does.
func verityBlock(algorithm string, data, hash uint32, blocks uint64, salt string) (b [superblockSize]byte) {
	le := binary.LittleEndian
	copy(b[:], "verity\x00\x00")
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], 1)
	copy(b[32:64], algorithm)
	le.PutUint32(b[64:], data)
	le.PutUint32(b[68:], hash)
	le.PutUint64(b[72:], blocks)
	le.PutUint16(b[80:], uint16(len(salt)))
	copy(b[88:], salt)
	return b
}

func TestSuperblock(t *testing.T) {
	s, err := parseSuperblock(verityBlock("sha256", 4096, 1024, 10, "salt"), 40960)
	if err != nil {
		t.Fatal(err)
	}
	v := verity{superblock: s, root: []byte{0xab, 1}}
	if got := v.table(unix.Mkdev(7, 1), unix.Mkdev(7, 300)); got != "1 7:1 7:300 4096 1024 10 1 sha256 ab01 73616c74" {
		t.Error(got)
	}
	v.salt = nil
	if got := v.table(0, 0); !strings.HasSuffix(got, " ab01 -") {
		t.Error(got)
	}
	for what, b := range map[string][superblockSize]byte{
		"zeros":                      {},
		"too many blocks":            verityBlock("sha256", 4096, 4096, 11, ""),
		"blocks of all numbers":      verityBlock("sha256", 4096, 4096, 1<<64-1, ""),
		"no blocks":                  verityBlock("sha256", 4096, 4096, 0, ""),
		"a size of no blocks":        verityBlock("sha256", 0, 4096, 1, ""),
		"an odd size of blocks":      verityBlock("sha256", 4096, 1000, 1, ""),
		"long blocks":                verityBlock("sha256", 128<<10, 4096, 1, ""),
		"no algorithm":               verityBlock("", 4096, 4096, 10, ""),
		"an algorithm and a comment": verityBlock("sha256 0 -", 4096, 4096, 10, ""),
		"a long salt":                verityBlock("sha256", 4096, 4096, 10, strings.Repeat("x", 257)),
	} {
		if s, err := parseSuperblock(b, 40960); err == nil {
			t.Errorf("%s: %+v", what, s)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	b := verityBlock("sha256", 4096, 4096, 10, "salt")
	f.Add(b[:], uint64(40960))
	f.Fuzz(func(t *testing.T, data []byte, size uint64) {
		var b [superblockSize]byte
		copy(b[:], data)
		s, err := parseSuperblock(b, size)
		if err != nil {
			return
		}
		if s.blocks*uint64(s.dataBlock) > size || s.blocks*uint64(s.dataBlock)/s.blocks != uint64(s.dataBlock) {
			t.Errorf("%+v is of more than %d bytes", s, size)
		}
		if n := len(strings.Fields((&verity{superblock: s}).table(1, 2))); n != 9 { // and a hash, which is none here
			t.Errorf("%+v makes %d words", s, n)
		}
	})
}

// What an image is verified with is told by the ids of its partitions, and by what is beside it.
func TestFindVerity(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	root, err := hex.DecodeString(sum)
	if err != nil {
		t.Fatal(err)
	}
	d := disk(512, 2048, entry{rootTypes[runtime.GOARCH], 1000, 1999, 0}, entry{verityTypes[runtime.GOARCH], 40, 99, 0})
	list, err := parseGPT(bytes.NewReader(d), uint64(len(d)))
	if err != nil {
		t.Fatal(err)
	}
	list[0].id, list[1].id = newGUID(0x01234567, 0x89ab, 0xcdef, 0x0123, 0x456789abcdef), newGUID(0x01234567, 0x89ab, 0xcdef, 0x0123, 0x456789abcdef)
	hashes, err := onlyOf(list, verityTypes[runtime.GOARCH])
	if err != nil || hashes == nil {
		t.Fatal(hashes, err)
	}
	if _, err := onlyOf(append(list, list[1]), list[1].kind); err == nil {
		t.Error("of two partitions with hashes one is taken")
	}
	b := verityBlock("sha256", 512, 512, 1000, "")
	copy(d[40*512:], b[:])
	signed := partition{span: span{200 * 512, 1024}}
	copy(d[200*512:], signaturePartition(sum, []byte("signature")))
	for what, c := range map[string]struct {
		layout
		beside map[string]string
		wrong  string // "none": nothing to verify with
	}{
		"ids":                      {layout{root: list[0], hashes: hashes}, nil, ""},
		"nothing":                  {layout{root: list[0]}, nil, "none"},
		"ids and a hash":           {layout{root: list[0], hashes: hashes}, map[string]string{"roothash": sum + "\n"}, ""},
		"another's hash":           {layout{root: list[0], hashes: hashes}, map[string]string{"roothash": strings.Repeat("0", 64)}, "another image's"},
		"a short hash":             {layout{root: list[0], hashes: hashes}, map[string]string{"roothash": "01"}, "another image's"},
		"no hash":                  {layout{root: list[0], hashes: hashes}, map[string]string{"roothash": "x"}, "no root hash"},
		"an empty hash":            {layout{root: list[0]}, map[string]string{"roothash": ""}, "no root hash"},
		"files":                    {layout{root: list[0]}, map[string]string{"roothash": sum, "verity": string(b[:])}, ""},
		"a hash of nothing":        {layout{root: list[0]}, map[string]string{"roothash": sum}, "no verity data"},
		"hashes that are none":     {layout{root: list[0]}, map[string]string{"roothash": sum, "verity": strings.Repeat("x", 512)}, "its verity data"},
		"hashes that are cut off":  {layout{root: list[0]}, map[string]string{"roothash": sum, "verity": "verity"}, "its verity data"},
		"a signature":              {layout{root: list[0], hashes: hashes, signature: &signed}, nil, ""},
		"a signature beside it":    {layout{root: list[0], hashes: hashes}, map[string]string{"roothash.p7s": "signature"}, ""},
		"two signatures":           {layout{root: list[0], hashes: hashes, signature: hashes}, map[string]string{"roothash.p7s": "signature"}, ""},
		"a signature that is none": {layout{root: list[0], hashes: hashes, signature: hashes}, nil, "its partition with a signature"},
		"a long signature":         {layout{root: list[0], hashes: hashes, signature: &partition{span: span{0, 1 << 40}}}, nil, "1099511627776 bytes"},
		"a signature of nothing":   {layout{root: list[0], signature: &signed}, nil, "no verity data"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "image.raw")
		if err := os.WriteFile(path, d, 0o600); err != nil {
			t.Fatal(err)
		}
		for suffix, text := range c.beside {
			if err := os.WriteFile(filepath.Join(dir, "image."+suffix), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		v, err := findVerity(&Image{Path: path}, file, c.layout, ns.Identity{})
		switch {
		case c.wrong == "none":
			if v != nil || err != nil {
				t.Errorf("%s: %+v, %v", what, v, err)
			}
		case c.wrong != "":
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: %v, want %q", what, err, c.wrong)
			}
		case err != nil || !bytes.Equal(v.root, root) || v.blocks != 1000 || strings.Contains(what, "signature") != (string(v.signature) == "signature"):
			t.Errorf("%s: %+v, %v", what, v, err)
		default:
			v.close(file)
		}
		_ = file.Close()
	}
}
