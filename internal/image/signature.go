package image

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/smallstep/pkcs7"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/ns"
)

// verityDirs are where the certificates of those are who may sign root hashes, as systemd has them. A name counts in the first of them that has it.
var verityDirs = []string{"/etc/verity.d", "/run/verity.d", "/usr/local/lib/verity.d", "/usr/lib/verity.d"}

// signatureLimit bounds a signature, as it is on a partition or beside an image, in bytes.
const signatureLimit = 4 << 20

// findSignature returns the signature of a root hash (PKCS #7, DER) from beside an image, or else from a partition; nil: it has none.
func findSignature(i *Image, file *os.File, root []byte, part *partition, opener ns.Identity) ([]byte, error) {
	f, err := beside(i, ".roothash.p7s", opener)
	switch {
	case err == nil:
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, signatureLimit))
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENAMETOOLONG):
		return nil, err
	case part == nil:
		return nil, nil
	case part.size > signatureLimit:
		return nil, fmt.Errorf("its partition with a signature has %d bytes", part.size)
	}
	text := make([]byte, part.size)
	if _, err := file.ReadAt(text, int64(part.offset)); err != nil {
		return nil, err
	}
	return parseSignature(text, root)
}

// parseSignature reads what is on a partition with a signature (Discoverable Partitions Specification): JSON, and then zeros.
func parseSignature(text, root []byte) ([]byte, error) {
	var s struct {
		RootHash  string `json:"rootHash"`
		Signature []byte `json:"signature"`
	}
	if err := json.Unmarshal(bytes.TrimRight(text, "\x00"), &s); err != nil {
		return nil, fmt.Errorf("its partition with a signature: %w", err)
	}
	if hash, err := hex.DecodeString(s.RootHash); err != nil || !bytes.Equal(hash, root) {
		return nil, fmt.Errorf("the signature on its partition is of another root hash, %q", s.RootHash)
	}
	return s.Signature, nil
}

// certificates returns those that a signature may be by. A name that is a link to /dev/null hides those of its name in later directories.
func certificates(dirs []string) (list []*x509.Certificate, err error) {
	seen := map[string]bool{}
	for _, dir := range dirs {
		names, err := filepath.Glob(filepath.Join(dir, "*.crt"))
		if err != nil {
			return nil, err
		}
		for _, path := range names {
			name := filepath.Base(path)
			info, err := os.Stat(path)
			if seen[name] || err != nil {
				continue
			}
			if seen[name] = true; !info.Mode().IsRegular() {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			block, _ := pem.Decode(text)
			if block == nil || block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("%s is no certificate", path)
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			list = append(list, c)
		}
	}
	return list, nil
}

// checkSignature checks that a root hash, as it is written, was signed by the owners of some of the certificates. Certificates that come with the
// signature do not count, and chains of them neither.
func checkSignature(root, signature []byte, trusted []*x509.Certificate) error {
	p, err := pkcs7.Parse(signature)
	if err != nil {
		return fmt.Errorf("it is none: %w", err)
	}
	p.Content, p.Certificates = []byte(hex.EncodeToString(root)), trusted
	if err := p.Verify(); err != nil {
		return fmt.Errorf("with %d certificates: %w", len(trusted), err)
	}
	return nil
}

// attachSigned returns a device as attach does, if the signature is good: that of the kernel, if it finds it so with its own keys, or else one
// that was checked here, with certificates of the host.
func (v *verity) attachSigned(name, table string, size uint64) (*os.File, error) {
	device, kernel := withKey(name, v.signature, func() (*os.File, error) {
		return mapDevice(name+"-signed", "verity", size, table+" 2 root_hash_sig_key_desc "+name)
	})
	if kernel == nil {
		return device, nil
	}
	trusted, err := certificates(verityDirs)
	if err == nil {
		err = checkSignature(v.root, v.signature, trusted)
	}
	if err != nil {
		return nil, fail.New(fail.AccessDenied, "the certificate of who signed it belongs into "+verityDirs[0]+", as NAME.crt",
			"the signature of its root hash is not good: %w; nor has the kernel taken it: %w", err, kernel)
	}
	return mapDevice(name, "verity", size, table)
}

// withKey runs f while the kernel has a key of a name (keyrings(7)), which no other thread has.
func withKey(name string, key []byte, f func() (*os.File, error)) (*os.File, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey("user", name, key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return nil, fmt.Errorf("giving the kernel the signature: %w", err)
	}
	defer func() {
		_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0) // it is nobody else's, and of no further use
	}()
	return f()
}
