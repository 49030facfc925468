package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
)

// A partition table as of the UEFI specification, '5.3 GUID Partition Table (GPT) Disk Layout'.

// guid is a GUID as it is on the disk: the first three groups are little-endian.
type guid [16]byte

// span is a part of a disk, in bytes.
type span struct{ offset, size uint64 }

type partition struct {
	span
	kind, id guid
	flags    uint64
}

// layout is where on a disk what is.
type layout struct {
	format
	root      partition
	hashes    *partition // that its blocks are verified with; nil: none
	signature *partition // of the hash of these; nil: none
}

// bytes returns a GUID in the order in which it is written.
func (g guid) bytes() []byte {
	return []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}

// noAuto is the flag of partitions that are not to be used by themselves (Discoverable Partitions Specification).
const noAuto = 1 << 63

// Types of partitions, of the same specification.
var (
	genericLinux = newGUID(0x0fc63daf, 0x8483, 0x4772, 0x8e79, 0x3d69d8477de4)
	rootTypes    = map[string]guid{
		"amd64":   newGUID(0x4f68bce3, 0xe8cd, 0x4db1, 0x96e7, 0xfbcaf984b709),
		"arm64":   newGUID(0xb921b045, 0x1df0, 0x41c3, 0xaf44, 0x4c6f280d3fae),
		"riscv64": newGUID(0x72ec70a6, 0xcf74, 0x40e6, 0xbd49, 0x4bda08e8f224),
	}
	verityTypes = map[string]guid{ // of what the root file system is verified with
		"amd64":   newGUID(0x2c7357ed, 0xebd2, 0x46d9, 0xaec1, 0x23d437ec2bf5),
		"arm64":   newGUID(0xdf3300ce, 0xd69f, 0x4c92, 0x978c, 0x9bfb0f38d820),
		"riscv64": newGUID(0xb6ed5582, 0x440b, 0x4209, 0xb8da, 0x5ff7c419ea3d),
	}
	signatureTypes = map[string]guid{ // of who says so
		"amd64":   newGUID(0x41092b05, 0x9fc8, 0x4523, 0x994f, 0x2def0408b176),
		"arm64":   newGUID(0x6db69de6, 0x29f4, 0x4758, 0xa7a5, 0x962190f00ce3),
		"riscv64": newGUID(0xefe0f087, 0xea8d, 0x4469, 0x821a, 0x4c2a96a8386a),
	}
	usrTypes = map[string]guid{
		"amd64":   newGUID(0x8484680c, 0x9521, 0x48c6, 0x9c11, 0xb0720656f69e),
		"arm64":   newGUID(0xb0e01050, 0xee5f, 0x4390, 0x949a, 0x9101b17104e9),
		"riscv64": newGUID(0xbeaec34b, 0x8442, 0x439b, 0xa40b, 0x984381ed097d),
	}
)

func newGUID(a uint32, b, c, d uint16, e uint64) (g guid) {
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], uint64(d)<<48|e)
	return g
}

// Bounds on what is read of a table.
const (
	maxPartitions = 1024
	maxEntry      = 4096 // bytes
)

// parseGPT reads the partition table of a disk of so many bytes. No table: nil, and no error.
func parseGPT(disk io.ReaderAt, size uint64) ([]partition, error) {
	for _, sector := range []uint64{512, 4096} {
		var h [92]byte
		if _, err := disk.ReadAt(h[:], int64(sector)); err != nil {
			continue // too short for one
		}
		if bytes.HasPrefix(h[:], []byte("EFI PART")) {
			return readGPT(disk, size, sector, h[:])
		}
	}
	return nil, nil
}

func readGPT(disk io.ReaderAt, size, sector uint64, h []byte) ([]partition, error) {
	le := binary.LittleEndian
	length, sum := le.Uint32(h[12:]), le.Uint32(h[16:])
	if length < 92 || uint64(length) > sector {
		return nil, fmt.Errorf("the header of its partition table has %d bytes", length)
	}
	header := make([]byte, length)
	if _, err := disk.ReadAt(header, int64(sector)); err != nil {
		return nil, errors.New("its partition table is cut off")
	}
	clear(header[16:20])
	if crc32.ChecksumIEEE(header) != sum {
		return nil, errors.New("the checksum of its partition table is wrong")
	}
	at, count, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if count > maxPartitions || each < 128 || each > maxEntry || at > size/sector {
		return nil, fmt.Errorf("its partition table has %d entries of %d bytes at %d", count, each, at)
	}
	entries := make([]byte, count*each)
	if _, err := disk.ReadAt(entries, int64(at*sector)); err != nil {
		return nil, errors.New("its partition table is cut off")
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(h[88:]) {
		return nil, errors.New("the checksum of its partitions is wrong")
	}
	list := []partition{}
	for e := range slices.Chunk(entries, int(each)) {
		p := partition{kind: guid(e[:16]), id: guid(e[16:32]), flags: le.Uint64(e[48:])}
		if p.kind == (guid{}) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first > last || last >= size/sector {
			return nil, fmt.Errorf("it is cut off: a partition ends at sector %d of %d", last, size/sector)
		}
		p.span = span{first * sector, (last - first + 1) * sector}
		list = append(list, p)
	}
	return list, nil
}

// rootOf chooses the partition with the root file system as systemd-dissect(1) does: the first of the type for this
// architecture, or else the only one of the type that does for all of Linux.
func rootOf(list []partition) (partition, error) {
	var generic []partition
	for _, p := range list {
		switch {
		case p.flags&noAuto != 0:
		case p.kind == rootTypes[runtime.GOARCH]:
			for _, other := range list {
				if other.kind == usrTypes[runtime.GOARCH] {
					return p, errors.New("it has /usr on a partition of its own")
				}
			}
			return p, nil
		case p.kind == genericLinux:
			generic = append(generic, p)
		}
	}
	switch len(generic) {
	case 0:
		return partition{}, errors.New("it has no partition with a root file system for this architecture")
	case 1:
		return generic[0], nil
	}
	return partition{}, fmt.Errorf("%d of its partitions may be the root file system", len(generic))
}

// onlyOf returns the partition of a type, nil if there is none.
func onlyOf(list []partition, kind guid) (found *partition, err error) {
	for i := range list {
		if p := &list[i]; p.kind == kind && p.flags&noAuto == 0 {
			if found != nil {
				return nil, errors.New("it has more than one partition with verity data, or with its signature")
			}
			found = p
		}
	}
	return found, nil
}
