package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// size returns a terminal's rows and columns; zero where f is none.
func size(f *os.File) (rows, columns uint16) {
	if w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
		return w.Row, w.Col
	}
	return 0, 0
}

// makeRaw sets a terminal to raw mode, as cfmakeraw(3) does. The returned function sets it back.
func makeRaw(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag &^= unix.CSIZE | unix.PARENB
	raw.Cflag |= unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}

// errLeft says that the user pressed the escape sequence.
var errLeft = errors.New("left")

// converse connects the caller's stdin and stdout with the session's terminal until the command ends
// or the user leaves (errLeft).
func converse(terminal *os.File) error {
	if isTerminal(os.Stdin) {
		restore, err := makeRaw(os.Stdin)
		if err != nil {
			return err
		}
		defer restore()
		// Signals that end this program must not leave the terminal raw.
		ends := make(chan os.Signal, 1)
		signal.Notify(ends, unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
		defer signal.Stop(ends)
		go func() {
			if s, ok := <-ends; ok {
				restore()
				os.Exit(128 + int(s.(unix.Signal)))
			}
		}()
	}
	if isTerminal(os.Stdout) {
		resized := make(chan os.Signal, 1)
		signal.Notify(resized, unix.SIGWINCH)
		defer signal.Stop(resized)
		resize(terminal) // it may have changed since the session began
		go func() {
			for range resized {
				resize(terminal)
			}
		}()
	}
	done := make(chan error, 2)
	go func() {
		if err := typed(terminal, os.Stdin); err != nil {
			done <- err
		}
	}()
	go func() {
		_, err := io.Copy(os.Stdout, terminal)
		if errors.Is(err, unix.EIO) {
			err = nil // the command's side is closed (pty(7))
		}
		done <- err
	}()
	return <-done
}

func resize(terminal *os.File) {
	if rows, columns := size(os.Stdout); rows != 0 {
		_ = unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
}

const (
	escape       = 0x1d // ^]
	escapeTimes  = 3
	escapeWithin = time.Second
	endOfFile    = 0x04 // ^D
)

// typed copies what is typed to the terminal. It returns errLeft on the escape sequence, nil when there
// is nothing more to come.
func typed(terminal io.Writer, in io.Reader) error {
	var presses []time.Time
	b := make([]byte, 4096)
	for {
		n, err := in.Read(b)
		now := time.Now()
		if count := bytes.Count(b[:n], []byte{escape}); count > 0 {
			for range count {
				presses = append(presses, now)
			}
			if len(presses) >= escapeTimes && now.Sub(presses[len(presses)-escapeTimes]) <= escapeWithin {
				return errLeft
			}
		} else if n > 0 {
			presses = nil
		}
		if n > 0 {
			if _, err := terminal.Write(b[:n]); err != nil {
				return nil // the command has ended
			}
		}
		if err != nil {
			_, _ = terminal.Write([]byte{endOfFile})
			return nil
		}
	}
}
