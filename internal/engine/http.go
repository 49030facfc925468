package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

const (
	// mostBytes bounds an answer: a user's engine may say what it likes.
	mostBytes = 32 << 20
	// mostHeader bounds its header.
	mostHeader = 64 << 10
)

// socket is where an engine answers HTTP requests.
type socket struct {
	path string
	uid  uint32 // whose engine it is
}

// errStatus is an answer other than 200.
type errStatus struct {
	code    int
	message string // the engine's own words
}

func (e *errStatus) Error() string {
	return fmt.Sprintf("answer %d: %q", e.code, e.message)
}

// isStatus reports whether an engine answered with one of these codes.
func isStatus(err error, codes ...int) bool {
	var status *errStatus
	if !errors.As(err, &status) {
		return false
	}
	for _, code := range codes {
		if status.code == code {
			return true
		}
	}
	return false
}

// get asks for a path, which may have a query, and decodes the answer. It follows no redirection.
func (s socket) get(ctx context.Context, path string, answer any) error {
	transport := &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: mostHeader,
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) },
	}
	client := http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body := json.NewDecoder(io.LimitReader(response.Body, mostBytes))
	if response.StatusCode != http.StatusOK {
		var said struct {
			Message string // Docker's
			Error   string // Incus's
		}
		_ = body.Decode(&said) // the code is enough
		return &errStatus{response.StatusCode, said.Message + said.Error}
	}
	if err := body.Decode(answer); err != nil {
		return fmt.Errorf("answer to %q: %w", path, err)
	}
	return nil
}

// dial connects, and makes sure that who listens is who should.
func (s socket) dial(ctx context.Context) (net.Conn, error) {
	path := s.path
	if s.uid != 0 {
		f, err := s.pin()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	var peer *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) { peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, asked); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if peer.Uid != s.uid {
		_ = conn.Close()
		return nil, fail.New(fail.AccessDenied, "", "user %d listens on %s, not user %d", peer.Uid, s.path, s.uid)
	}
	return conn, nil
}

// pin holds on to a socket in a user's runtime directory, where the user can put symbolic links to sockets of
// others and mount file systems: neither is followed.
func (s socket) pin() (*os.File, error) {
	dir, err := unix.Open(filepath.Dir(s.path), unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: s.path, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, filepath.Base(s.path), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: s.path, Err: err}
	}
	return os.NewFile(uintptr(fd), s.path), nil
}
