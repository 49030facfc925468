package oci

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestTeeGivesAllToEach(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize, 3*chunkSize + 7, 3 * ahead * chunkSize} {
		text := noise(int64(size), size)
		all := sha256.New()
		var some [1]byte
		var slow bytes.Buffer
		err := tee(iotest.HalfReader(strings.NewReader(text)), into(all),
			func(r io.Reader) error { _, err := r.Read(some[:]); return ignoreEOF(err) },
			func(r io.Reader) error {
				_, err := io.CopyBuffer(&slow, struct{ io.Reader }{r}, make([]byte, 1000))
				return err
			},
			func(io.Reader) error { return nil })
		if err != nil || digestOf([]byte(text)).compare(all) != nil || slow.String() != text {
			t.Errorf("%d bytes: %v, %d bytes", size, err, slow.Len())
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// The first error ends all of it, whoever has it, and wherever the others are.
func TestTeeFails(t *testing.T) {
	long := strings.NewReader(noise(1, 3*ahead*chunkSize))
	failed := errors.New("failed")
	for what, c := range map[string]struct {
		from io.Reader
		read func(io.Reader) error
		want error
	}{
		"a reader at once":    {long, func(io.Reader) error { return failed }, failed},
		"a reader later":      {long, func(r io.Reader) error { _, _ = io.CopyN(io.Discard, r, chunkSize+1); return failed }, failed},
		"a reader at the end": {long, func(r io.Reader) error { _, _ = io.Copy(io.Discard, r); return failed }, failed},
		"the source":          {io.MultiReader(long, iotest.ErrReader(failed)), into(sha256.New()), failed},
		"a source cut off":    {io.MultiReader(long, iotest.ErrReader(io.ErrUnexpectedEOF)), into(sha256.New()), io.ErrUnexpectedEOF},
		"one in another": {long, func(r io.Reader) error {
			return tee(r, into(sha256.New()), func(r io.Reader) error { _, _ = io.CopyN(io.Discard, r, 5); return failed })
		}, failed},
	} {
		if _, err := long.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if err := tee(c.from, into(sha256.New()), c.read); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
