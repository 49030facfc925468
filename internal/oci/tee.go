package oci

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

const (
	chunkSize = frameSize // of what is handed on at once, in bytes
	ahead     = 4         // chunks that the quickest reader may be ahead of the slowest
)

// chunk is a piece that all read, each at its own pace.
type chunk struct {
	buf  []byte
	size int
	left atomic.Int32 // how many have not read it yet
}

// tee reads from r once, and has all of readers read it to its end at the same time, each in a goroutine of its own. The first error ends
// it, and is what it returns. One that returns without an error before the end wants no more; the others go on.
func tee(r io.Reader, readers ...func(io.Reader) error) error {
	t := &teed{free: make(chan *chunk, ahead), stop: make(chan struct{})}
	pipes := make([]*pipe, len(readers))
	var wg sync.WaitGroup
	for i, read := range readers {
		p := &pipe{teed: t, chunks: make(chan *chunk, ahead)} // there are no more, so nobody waits for room
		pipes[i] = p
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := read(p)
			if err == nil {
				_, err = p.WriteTo(io.Discard)
			}
			if err != nil {
				t.fail(err)
			}
		}()
	}
	for made := 0; ; {
		c := t.take(&made)
		if c == nil {
			break
		}
		err := c.fill(r)
		c.left.Store(int32(len(pipes)))
		for _, p := range pipes {
			p.chunks <- c
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			t.fail(err)
		}
		break
	}
	for _, p := range pipes {
		close(p.chunks)
	}
	wg.Wait()
	return t.err
}

// teed is what the readers of one tee share.
type teed struct {
	free chan *chunk // that all have read
	once sync.Once
	err  error         // the first
	stop chan struct{} // closed when there is one
}

func (t *teed) fail(err error) {
	t.once.Do(func() {
		t.err = err
		close(t.stop)
	})
}

// take returns a chunk to be filled, or nil after an error.
func (t *teed) take(made *int) *chunk {
	select {
	case <-t.stop:
		return nil
	case c := <-t.free:
		return c
	default:
	}
	if *made < ahead {
		*made++
		return &chunk{buf: make([]byte, chunkSize)}
	}
	select {
	case <-t.stop:
		return nil
	case c := <-t.free:
		return c
	}
}

// fill reads as much as there is room for. io.ReadFull would not tell a reader's own io.ErrUnexpectedEOF from its end.
func (c *chunk) fill(r io.Reader) error {
	c.size = 0
	for c.size < len(c.buf) {
		n, err := r.Read(c.buf[c.size:])
		c.size += n
		if err != nil {
			return err
		}
	}
	return nil
}

// pipe is one reader's end of a tee.
type pipe struct {
	*teed
	chunks chan *chunk
	now    *chunk // being read
	at     int    // from there on
}

var errStopped = errors.New("another reader has failed")

// advance makes sure that there is something to be read.
func (p *pipe) advance() error {
	for p.now == nil || p.at == p.now.size {
		if p.now != nil && p.now.left.Add(-1) == 0 {
			p.free <- p.now
		}
		p.now, p.at = nil, 0
		select {
		case c, ok := <-p.chunks:
			if !ok {
				return io.EOF
			}
			p.now = c
		case <-p.stop:
			return errStopped
		}
	}
	return nil
}

func (p *pipe) Read(b []byte) (int, error) {
	if err := p.advance(); err != nil {
		return 0, err
	}
	n := copy(b, p.now.buf[p.at:p.now.size])
	p.at += n
	return n, nil
}

// WriteTo spares io.Copy a copy.
func (p *pipe) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if err := p.advance(); errors.Is(err, io.EOF) {
			return total, nil
		} else if err != nil {
			return total, err
		}
		n, err := w.Write(p.now.buf[p.at:p.now.size])
		p.at += n
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}
