package image

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is in testdata/signature was made by openssl: smime -sign -binary -noattr -nocerts -outform der -signer NAME.crt, of this hash as it is
// written; with-certificate without -nocerts, attributes by cms -sign -binary, attached with -nodetach, and another-hash in capitals.
var signedRoot, _ = hex.DecodeString(strings.Repeat("0123456789abcdef", 4))

func testSignature(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/signature", name+".p7s"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// trust makes a directory of certificates of those in testdata.
func trust(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join("testdata/signature", name+".crt"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".crt"), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func trusted(t testing.TB, dirs ...string) []*x509.Certificate {
	t.Helper()
	list, err := certificates(dirs)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestSignature(t *testing.T) {
	signer := trust(t, "signer")
	for what, c := range map[string]struct {
		signature string
		dirs      []string
		wrong     string
	}{
		"good":                             {"signer", []string{signer}, ""},
		"of an elliptic curve":             {"ec", []string{trust(t, "ec")}, ""},
		"by one of several":                {"signer", []string{trust(t, "other", "ec"), "/nowhere", signer}, ""},
		"with a certificate":               {"with-certificate", []string{signer}, ""},
		"with attributes":                  {"attributes", []string{signer}, ""},
		"with what it is of":               {"attached", []string{signer}, ""},
		"by somebody else":                 {"other", []string{signer}, "No certificate for signer"},
		"with a certificate that is not":   {"with-certificate", []string{trust(t, "other")}, "No certificate for signer"},
		"and no certificates":              {"signer", nil, "with 0 certificates"},
		"of another hash":                  {"another-hash", []string{signer}, "verification error"},
		"of another hash, which it brings": {"attached-other", []string{signer}, "verification error"},
	} {
		signature, root := c.signature, signedRoot
		if signature == "attached-other" {
			signature, root = "attached", append([]byte{2}, signedRoot[1:]...)
		}
		err := checkSignature(root, testSignature(t, signature), trusted(t, c.dirs...))
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v, want %q", what, err, c.wrong)
		}
	}
	good := testSignature(t, "signer")
	for n := range good {
		if checkSignature(signedRoot, good[:n], trusted(t, signer)) == nil {
			t.Errorf("%d bytes of %d will do", n, len(good))
		}
	}
}

// The first directory has its say, and what is no file hides what is called so.
func TestCertificates(t *testing.T) {
	signer, other := trust(t, "signer"), trust(t, "other", "signer")
	if n := len(trusted(t, signer, other)); n != 2 {
		t.Errorf("%d certificates", n)
	}
	hiding := t.TempDir()
	if err := os.Symlink("/dev/null", filepath.Join(hiding, "signer.crt")); err != nil {
		t.Fatal(err)
	}
	if n := len(trusted(t, hiding, signer)); n != 0 {
		t.Errorf("%d certificates, and it is hidden", n)
	}
	if err := os.WriteFile(filepath.Join(other, "x.crt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := certificates([]string{other}); err == nil || !strings.Contains(err.Error(), "x.crt is no certificate") {
		t.Error(err)
	}
}

// signaturePartition is what systemd-repart writes on one.
func signaturePartition(root string, signature []byte) string {
	return `{"rootHash":"` + root + `","certificateFingerprint":"00","signature":"` + base64.StdEncoding.EncodeToString(signature) + `"}` + strings.Repeat("\x00", 100)
}

func TestSignaturePartition(t *testing.T) {
	root := hex.EncodeToString(signedRoot)
	got, err := parseSignature([]byte(signaturePartition(root, []byte("signature"))), signedRoot)
	if err != nil || string(got) != "signature" {
		t.Errorf("%q, %v", got, err)
	}
	for what, c := range map[string]struct{ text, wrong string }{
		"of another hash": {signaturePartition(strings.Repeat("0", 64), nil), "another root hash"},
		"zeros":           {strings.Repeat("\x00", 100), "with a signature: "},
		"and a text":      {signaturePartition(root, nil) + "x", "with a signature: "},
		"cut off":         {signaturePartition(root, nil)[:40], "with a signature: "},
		"of nothing":      {"{}", "another root hash"},
	} {
		if _, err := parseSignature([]byte(c.text), signedRoot); err == nil || !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v, want %q", what, err, c.wrong)
		}
	}
}

// No bytes are the signature of something that was not signed.
func FuzzSignature(f *testing.F) {
	for _, name := range []string{"signer", "ec", "with-certificate", "attributes", "attached"} {
		f.Add(testSignature(f, name))
	}
	list := trusted(f, trust(f, "signer", "ec"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if checkSignature(append([]byte{2}, signedRoot[1:]...), data, list) == nil {
			t.Errorf("%x will do", data)
		}
	})
}
