package fuse

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Reserve starts n more threads, and none from then on, for a control group in which there may be no room for others
// later (pids.max): the Go runtime ends the process when it cannot start a thread. Requests that all threads are too busy
// for wait, and locks that more than a quarter of the threads wait for fail with ENOLCK. It returns when the threads are
// there. Serve has been called, or will be, over [Device]: what io_uring takes is not bounded here.
func (f *FileSystem) Reserve(n int) {
	<-f.serving
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn != nil {
		conn.reserve(n)
	}
}

func (c *transport) reserve(n int) {
	if c.fixed.Swap(true) {
		return
	}
	var ready sync.WaitGroup
	ready.Add(n)
	for range n / 4 {
		c.workers.Add(1)
		go c.lock(ready.Done)
	}
	for range n - n/4 {
		c.start(ready.Done)
	}
	ready.Wait()
}

// lock is a thread for requests that wait for locks.
func (c *transport) lock(ready func()) {
	defer c.workers.Done()
	err := c.tree.serves()
	if err == nil {
		c.idle.Add(1)
	}
	ready()
	if err != nil {
		return
	}
	out := make([]byte, smallBuf)
	for {
		select {
		case req := <-c.lockers:
			n := c.perform(nil, req, nil, out[:outHeaderSize], out[outHeaderSize:])
			c.idle.Add(1) // before anybody can know
			c.reply(out, n)
		case <-c.ended:
			return
		}
	}
}

// lockLater has a request performed that waits for a lock.
func (c *transport) lockLater(req, out []byte) {
	if c.fixed.Load() {
		if c.idle.Add(-1) < 0 {
			c.idle.Add(1)
			c.refuse(req, out, unix.ENOLCK)
			return
		}
		select {
		case c.lockers <- req: // it is taken at once
		case <-c.ended:
		}
		return
	}
	c.workers.Add(1)
	go func() {
		defer c.workers.Done()
		if err := c.tree.serves(); err == nil {
			c.handle(nil, req, make([]byte, smallBuf))
		}
	}()
}
