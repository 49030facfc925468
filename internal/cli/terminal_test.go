package cli

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// keys returns what is typed, one read at a time.
type keys []string

func (k *keys) Read(b []byte) (int, error) {
	if len(*k) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*k)[0])
	*k = (*k)[1:]
	return n, nil
}

func TestEscapeSequence(t *testing.T) {
	for _, test := range []struct {
		typed keys
		left  bool
		sent  string
	}{
		{keys{"ls\r", "\x03"}, false, "ls\r\x03\x04"},
		{keys{"\x1d\x1d\x1d"}, true, ""},
		{keys{"a", "\x1d", "\x1d", "\x1d", "never"}, true, "a\x1d\x1d"},
		{keys{"\x1d", "\x1d", "x", "\x1d"}, false, "\x1d\x1dx\x1d\x04"},
	} {
		var sent bytes.Buffer
		in := append(keys{}, test.typed...)
		err := typed(&sent, &in)
		if errors.Is(err, errLeft) != test.left || sent.String() != test.sent {
			t.Errorf("%q: left %v, sent %q", test.typed, err, sent.String())
		}
	}
}
