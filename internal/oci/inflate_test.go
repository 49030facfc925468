package oci

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// zipped compresses.
func zipped(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	z.Name, z.Comment, z.Extra = "name", "comment", []byte("extra")
	for _, p := range parts {
		if _, err := z.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := z.Flush(); err != nil { // a block of its own, and an empty one
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unzip(r io.Reader) ([]byte, error) {
	z, err := gunzip(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// contents are of all kinds: what repeats near and far, what does not, what is a run.
func contents(t testing.TB) map[string][]byte {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 300_000)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(random) // never an error
	skewed := make([]byte, 400_000)
	for i := range skewed {
		skewed[i] = random[i%len(random)] & random[i*7%len(random)] & random[i*13%len(random)]
	}
	return map[string][]byte{
		"nothing": nil, "a byte": {7}, "a text": []byte(strings.Repeat("a text that repeats, ", 20_000)), "zeros": make([]byte, 1<<20),
		"a program": program[:min(len(program), 3<<20)], "random": random, "far": append(random[:32768:32768], random[:32768]...), "skewed": skewed,
	}
}

func TestGunzip(t *testing.T) {
	for what, want := range contents(t) {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, flate.BestSpeed, flate.DefaultCompression, flate.BestCompression} {
			data := zipped(t, level, want[:len(want)/3], want[len(want)/3:])
			for how, r := range map[string]io.Reader{
				"whole": bytes.NewReader(data), "half of it": iotest.HalfReader(bytes.NewReader(data)), "with its end": iotest.DataErrReader(bytes.NewReader(data)),
			} {
				if got, err := unzip(r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, level %d, %s: %d bytes of %d, %v", what, level, how, len(got), len(want), err)
				}
			}
			got, err := unzip(io.MultiReader(bytes.NewReader(data), bytes.NewReader(data)))
			if err != nil || !bytes.Equal(got, append(want[:len(want):len(want)], want...)) {
				t.Errorf("%s twice, level %d: %d bytes, %v", what, level, len(got), err)
			}
			if got, err := unzip(bytes.NewReader(append(data[:len(data):len(data)], "behind"...))); err == nil {
				t.Errorf("%s, level %d, and something behind it: %d bytes", what, level, len(got))
			}
		}
	}
	if _, err := unzip(iotest.ErrReader(os.ErrDeadlineExceeded)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// What is cut off or changed anywhere is an error, never less or something else.
func TestGunzipDamaged(t *testing.T) {
	text := []byte(strings.Repeat("some text, some of which repeats: ", 40) + strings.Repeat("x", 300))
	for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, flate.BestSpeed, flate.BestCompression} {
		data := zipped(t, level, text)
		for n := range data {
			if got, err := unzip(iotest.OneByteReader(bytes.NewReader(data[:n]))); err == nil {
				t.Errorf("level %d, %d bytes of %d: %d bytes", level, n, len(data), len(got))
			}
			for _, bit := range []int{0, 3, 6} {
				changed := bytes.Clone(data)
				changed[n] ^= 1 << bit
				if got, err := unzip(bytes.NewReader(changed)); err == nil && !bytes.Equal(got, text) {
					t.Errorf("level %d, byte %d changed: %d bytes", level, n, len(got))
				}
			}
		}
	}
}

// It does as the standard library does. A sum of the header is not looked at.
func FuzzGunzip(f *testing.F) {
	for _, c := range contents(f) {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, flate.BestCompression} {
			f.Add(zipped(f, level, c[:min(len(c), 2000)])[10:])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		// The sums at the end are hardly ever right, so it is deflate that is compared.
		raw := flate.NewReader(bytes.NewReader(data))
		want, failed := io.ReadAll(io.LimitReader(raw, 1<<20))
		d, err := gunzip(io.MultiReader(strings.NewReader("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), iotest.HalfReader(bytes.NewReader(data))))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.LimitReader(d, 1<<20))
		if failed == nil && !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v, in place of %d", len(got), err, len(want))
		}
		if failed != nil && err == nil && len(got) < 1<<20 {
			t.Errorf("%d bytes in place of %v", len(got), failed)
		}
		other, failed := gzip.NewReader(bytes.NewReader(data))
		if failed == nil {
			want, failed = io.ReadAll(io.LimitReader(other, 1<<20))
		}
		got, err = unzip(io.LimitReader(bytes.NewReader(data), 64<<10))
		if failed == nil && (err != nil || len(want) < 1<<20 && !bytes.Equal(got, want)) {
			t.Errorf("gzip: %d bytes, %v, in place of %d", len(got), err, len(want))
		}
	})
}
