package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// verity is what the blocks of a file system are compared with as they are read (dm-verity).
type verity struct {
	file *os.File // with the hashes; owned, unless it is the image
	part span     // where they are in it
	root []byte   // the hash of all of them
	// Who has made it says so (PKCS #7); nil: nobody does.
	signature []byte
	superblock
}

// findVerity returns what an image is verified with; nil: it has nothing of the kind. As for systemd-dissect(1), hashes are on a partition of
// their own, or beside the image, in IMAGE.verity, where ".raw" is not counted. The root hash is in IMAGE.roothash, or it is told by the ids of
// the partitions. Its signature is in IMAGE.roothash.p7s, or on a further partition.
func findVerity(i *Image, file *os.File, d layout, opener ns.Identity) (*verity, error) {
	told, err := tellRoot(i, opener)
	if err != nil {
		return nil, err
	}
	v := &verity{file: file, root: told}
	switch {
	case d.hashes != nil:
		v.part = d.hashes.span
		first, last := d.root.id.bytes(), d.hashes.id.bytes()
		if told == nil {
			v.root = slices.Concat(first, last)
		} else if len(told) < len(first)+len(last) || !bytes.HasPrefix(told, first) || !bytes.HasSuffix(told, last) {
			return nil, errors.New("the root hash beside it is another image's")
		}
	case told != nil:
		if v.file, err = beside(i, ".verity", opener); err != nil {
			return nil, fmt.Errorf("it has a root hash, and no verity data that it can be compared with: %w", err)
		}
		size, err := v.file.Seek(0, io.SeekEnd)
		if err != nil {
			_ = v.file.Close()
			return nil, err
		}
		v.part = span{0, uint64(size)}
	case d.signature != nil:
		return nil, errors.New("it has a signature, and no verity data that it is of")
	default:
		return nil, nil
	}
	var b [superblockSize]byte
	if _, err = v.file.ReadAt(b[:], int64(v.part.offset)); err == nil {
		v.superblock, err = parseSuperblock(b, d.root.size)
	}
	if err != nil {
		err = fmt.Errorf("its verity data: %w", err)
	} else {
		v.signature, err = findSignature(i, file, v.root, d.signature, opener)
	}
	if err != nil {
		v.close(file)
		return nil, err
	}
	return v, nil
}

// close closes the file with the hashes, unless that is the image.
func (v *verity) close(image *os.File) {
	if v.file != image {
		_ = v.file.Close()
	}
}

// beside opens a file that belongs to an image and has its name, but for the suffix. What counts for the image counts for it.
func beside(i *Image, suffix string, opener ns.Identity) (*os.File, error) {
	f, _, err := openRegular(strings.TrimSuffix(i.Path, ".raw")+suffix, opener)
	if err != nil {
		return nil, err
	}
	if !opener.Root() {
		if err := rootsOwn(f); err != nil {
			_ = f.Close()
			return nil, fail.New(fail.AccessDenied, "only root may use others", "%q is not root's alone: %w", f.Name(), err)
		}
	}
	return f, nil
}

// tellRoot returns the root hash that is written down beside an image; nil: none is.
func tellRoot(i *Image, opener ns.Identity) ([]byte, error) {
	f, err := beside(i, ".roothash", opener)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, err
	}
	root, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(root) == 0 {
		return nil, errors.New("what is beside it is no root hash")
	}
	return root, nil
}

// superblock is what is before hashes, of 512 bytes (cryptsetup's wiki, 'DMVerity').
type superblock struct {
	hashType             uint32
	algorithm            string
	dataBlock, hashBlock uint32 // bytes
	blocks               uint64 // of data
	salt                 []byte
}

const superblockSize = 512

var algorithmPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// parseSuperblock reads the superblock of the hashes of so many bytes.
func parseSuperblock(b [superblockSize]byte, size uint64) (superblock, error) {
	le := binary.LittleEndian
	name, _, _ := bytes.Cut(b[32:64], []byte{0})
	s := superblock{
		hashType: le.Uint32(b[12:]), algorithm: string(name), dataBlock: le.Uint32(b[64:]), hashBlock: le.Uint32(b[68:]), blocks: le.Uint64(b[72:]),
	}
	salt := le.Uint16(b[80:])
	switch {
	case !bytes.HasPrefix(b[:], []byte("verity\x00\x00")):
		return s, errors.New("it does not begin as such")
	case le.Uint32(b[8:]) != 1 || s.hashType > 1 || salt > 256:
		return s, errors.New("it is of another version")
	case !isBlockSize(s.dataBlock) || !isBlockSize(s.hashBlock) || !algorithmPattern.MatchString(s.algorithm):
		return s, fmt.Errorf("it is of blocks of %d bytes, hashed in those of %d with %q", s.dataBlock, s.hashBlock, s.algorithm)
	case s.blocks == 0 || s.blocks > size/uint64(s.dataBlock):
		return s, fmt.Errorf("it is of %d blocks of %d bytes, and there are %d bytes", s.blocks, s.dataBlock, size)
	}
	s.salt = bytes.Clone(b[88 : 88+int(salt)])
	return s, nil
}

func isBlockSize(n uint32) bool { return n >= 512 && n <= 64<<10 && bits.OnesCount32(n) == 1 }

// table is what the device mapper is told, with the numbers of the devices (verity.rst in the kernel's documentation).
func (v *verity) table(data, hashes uint64) string {
	salt := "-"
	if len(v.salt) > 0 {
		salt = hex.EncodeToString(v.salt)
	}
	// The superblock has a block of hashes to itself.
	return fmt.Sprintf("%d %d:%d %d:%d %d %d %d 1 %s %x %s", v.hashType, unix.Major(data), unix.Minor(data), unix.Major(hashes), unix.Minor(hashes),
		v.dataBlock, v.hashBlock, v.blocks, v.algorithm, v.root, salt)
}

// attach returns a device of what is verified of a device with data; the caller owns it.
func (v *verity) attach(data *os.File, path string) (*os.File, error) {
	hashes, err := attachLoop(v.file, path, v.part)
	if err != nil {
		return nil, err
	}
	defer hashes.Close() // the device keeps it
	var of [2]unix.Stat_t
	if err := errors.Join(unix.Fstat(int(data.Fd()), &of[0]), unix.Fstat(int(hashes.Fd()), &of[1])); err != nil {
		return nil, err
	}
	// While there is a device by this name, it has these two open, and they are what they were.
	name := fmt.Sprintf("cntr-%.64x-%d-%d", v.root[:min(len(v.root), 32)], unix.Minor(of[0].Rdev), unix.Minor(of[1].Rdev))
	size, table := v.blocks*uint64(v.dataBlock), v.table(of[0].Rdev, of[1].Rdev)
	if v.signature != nil {
		return v.attachSigned(name, table, size)
	}
	return mapDevice(name, "verity", size, table)
}
