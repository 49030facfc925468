package cli

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// pipes connect the caller's three streams with the session's. The caller's own descriptors are never
// handed in: a terminal could be typed into from there (CVE-2017-5226), a file opened anew with other rights.
type pipes struct {
	theirs  [3]*os.File // for the command: read, write, write
	ours    [3]*os.File
	outputs sync.WaitGroup
}

func newPipes() (*pipes, error) {
	p := &pipes{}
	for fd := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, err
		}
		p.theirs[fd], p.ours[fd] = w, r
		if fd == 0 {
			p.theirs[fd], p.ours[fd] = r, w
		}
	}
	return p, nil
}

// close closes what is open of the pipes.
func (p *pipes) close() {
	p.closeTheirs()
	for _, f := range p.ours {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		if f != nil {
			_ = f.Close()
		}
	}
}

// copy starts copying. Each stream ends for itself, and its end is passed on: a command that closes its output may run on.
func (p *pipes) copy() {
	p.closeTheirs() // the session has its own by now
	go func() {
		_, _ = io.Copy(p.ours[0], os.Stdin) // a command that does not read on is no error
		_ = p.ours[0].Close()
		_ = os.Stdin.Close()
	}()
	for fd, to := range map[int]*os.File{1: os.Stdout, 2: os.Stderr} {
		p.outputs.Add(1)
		go func() {
			defer p.outputs.Done()
			if fd == 1 { // there may be something to say on the other, later
				defer to.Close()
			}
			for {
				_, err := io.Copy(to, p.ours[fd])
				// The deadline says that the session is over. What is in the pipe still comes out; an
				// end of file does not if somebody took the other end along out of the session.
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
				_ = p.ours[fd].SetReadDeadline(time.Now().Add(lingering))
				if n, err := io.CopyN(to, p.ours[fd], 1); n == 0 || err != nil {
					return
				}
			}
		}()
	}
}

// lingering bounds the wait for the end of a stream after the session's end.
const lingering = 100 * time.Millisecond

// drain waits until all output has been copied, after the session has ended.
func (p *pipes) drain() {
	for fd := 1; fd <= 2; fd++ {
		_ = p.ours[fd].SetReadDeadline(time.Now().Add(lingering))
	}
	p.outputs.Wait()
}
