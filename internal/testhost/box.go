package testhost

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// boxed is a directory in the test host with the files of one run: the program, and what the testing
// package is told to write, which is fetched afterwards.
type boxed struct {
	outside, inside string            // the same directory, seen from either side
	outputs         map[string]string // a name in it → where the caller wants it
}

// outputFlags are the flags of a test binary that name a file to write; see "go help testflag".
var outputFlags = []string{
	"-test.coverprofile=", "-test.cpuprofile=", "-test.memprofile=", "-test.mutexprofile=",
	"-test.blockprofile=", "-test.trace=",
}

// put copies a program in and returns its path in the test host.
func (b *boxed) put(program string) (string, error) {
	if err := os.MkdirAll(b.outside, 0o755); err != nil {
		return "", err
	}
	name := filepath.Base(program)
	if err := copyFile(program, filepath.Join(b.outside, name), 0o755); err != nil {
		return "", err
	}
	return filepath.Join(b.inside, name), nil
}

// redirect returns the arguments with output files put into the directory.
func (b *boxed) redirect(args []string) ([]string, error) {
	b.outputs = map[string]string{}
	var redirected []string
	for _, arg := range args {
		for _, flag := range outputFlags {
			if path, ok := strings.CutPrefix(arg, flag); ok {
				name := "out-" + filepath.Base(path)
				b.outputs[name] = path
				arg = flag + filepath.Join(b.inside, name)
			}
		}
		if strings.HasPrefix(arg, "-test.gocoverdir=") {
			if err := os.MkdirAll(filepath.Join(b.outside, "gocoverdir"), 0o755); err != nil {
				return nil, err
			}
			arg = "-test.gocoverdir=" + filepath.Join(b.inside, "gocoverdir")
		}
		redirected = append(redirected, arg)
	}
	return redirected, nil
}

// fetch copies the outputs to where the caller wants them.
func (b *boxed) fetch() error {
	for name, path := range b.outputs {
		err := copyFile(filepath.Join(b.outside, name), path, 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (b *boxed) remove() { _ = os.RemoveAll(b.outside) }

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
