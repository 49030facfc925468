package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/bus"
)

// conn is the service's connection to the bus: godbus's message format, with reading and writing of
// our own, because godbus's connection (v5.2.4) cannot be given to strangers. It drops the descriptors
// of any message that it refuses, and of any that has more of them than its body refers to, without
// closing them: whoever may call could have the service run out of descriptors. And it takes the
// process with it when a handler panics, or a message holds an array of descriptors.
//
// Here every descriptor that arrives belongs to the message that it came with, and is closed with it.
type conn struct {
	sock *net.UnixConn

	writing sync.Mutex // held while a message is written
	serial  uint32     // of the last message written; under writing

	mu      sync.Mutex
	waiting map[uint32]chan<- *message // callers by the serial of their call
	closed  error                      // why reading has ended
}

// message is a message that was received, with the descriptors that came with it.
type message struct {
	*godbus.Message
	files     []*os.File // what came with it, in the order that the body counts them, and what is owned
	received  int        // how many came with it
	truncated bool       // some were lost on the way: our limit on open files was reached
}

// own makes f live as long as the message: until it is answered.
func (m *message) own(f *os.File) { m.files = append(m.files, f) }

// file returns the descriptor that the body refers to by its index, nil if there is none. It stays the
// message's.
func (m *message) file(i godbus.UnixFDIndex) *os.File {
	if int64(i) < int64(m.received) {
		return m.files[i]
	}
	return nil
}

func (m *message) close() {
	for _, f := range m.files {
		_ = f.Close() // pipes and sockets of others: nothing to be done about an error
	}
	m.files = nil
}

// connect connects to the system bus and says Hello. [conn.read] must be running for calls to return,
// but not yet here.
func connect(ctx context.Context) (*conn, error) {
	sock, err := bus.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &conn{sock: sock, waiting: make(map[uint32]chan<- *message)}
	if d, ok := ctx.Deadline(); ok {
		_ = sock.SetDeadline(d)
	}
	if err := c.authenticate(); err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("connecting to the system bus: %w", err)
	}
	_ = sock.SetDeadline(time.Time{})
	return c, nil
}

// authenticate does the handshake of the D-Bus specification ("Authentication Protocol") with EXTERNAL,
// which tells the bus our uid by way of the kernel. All lines go out at once, as sd-bus does it; the
// bus sends no message before it was sent one, so that nothing is read too far.
func (c *conn) authenticate() error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	_, err := io.WriteString(c.sock, "\x00AUTH EXTERNAL "+uid+"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
	if err != nil {
		return err
	}
	for _, want := range []string{"OK ", "AGREE_UNIX_FD"} {
		line, err := readLine(c.sock)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(line, []byte(want)) {
			return fmt.Errorf("the bus answers %q, not %q", line, want)
		}
	}
	return nil
}

func readLine(r io.Reader) ([]byte, error) {
	const most = 1024
	var line []byte
	for b := make([]byte, 1); len(line) < most; {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		line = append(line, b[0])
	}
	return nil, errors.New("the bus answers with an endless line")
}

// read receives messages until the connection ends, and says why it did. It hands calls to handle,
// which must not block and owns the message. Replies go to who waits for them; signals are of no
// interest.
func (c *conn) read(handle func(*message)) error {
	for {
		m, err := c.receive()
		if err != nil {
			c.end(err)
			return err
		}
		switch {
		case m.Message == nil: // not to be decoded; the bus should not have let it pass
			m.close()
		case m.Type == godbus.TypeMethodCall:
			handle(m)
		case m.Type == godbus.TypeMethodReply || m.Type == godbus.TypeError:
			c.deliver(m)
		default:
			m.close()
		}
	}
}

func (c *conn) deliver(m *message) {
	serial, _ := m.Headers[godbus.FieldReplySerial].Value().(uint32)
	c.mu.Lock()
	ch := c.waiting[serial]
	delete(c.waiting, serial)
	c.mu.Unlock()
	if ch == nil {
		m.close()
		return
	}
	ch <- m // it has room for one
}

func (c *conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = fmt.Errorf("the connection to the bus has ended: %w", err)
	for _, ch := range c.waiting {
		close(ch)
	}
	c.waiting = nil
}

// The fixed part of a message's header, and the longest message (D-Bus specification, "Message
// Format"). The system bus passes on much less.
const (
	fixedHeader = 16
	maxMessage  = 1 << 27
)

// receive reads one message. Never more than its own bytes are asked for: the kernel hands over
// descriptors with the first byte of the write that they were sent with, so that those which arrive
// while a message is read are this message's.
func (c *conn) receive() (*message, error) {
	m := &message{}
	fixed := make([]byte, fixedHeader)
	if err := c.fill(m, fixed); err != nil {
		m.close()
		return nil, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if fixed[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := uint64(order.Uint32(fixed[4:])), uint64(order.Uint32(fixed[12:]))
	length := fixedHeader + (fields+7)&^7 + body
	if length > maxMessage {
		m.close()
		return nil, fmt.Errorf("a message of %d bytes", length)
	}
	whole := make([]byte, length)
	copy(whole, fixed)
	if err := c.fill(m, whole[fixedHeader:]); err != nil {
		m.close()
		return nil, err
	}
	m.Message = decode(whole)
	return m, nil
}

// fill reads into b until it is full, and adds the descriptors that arrive with it to m.
func (c *conn) fill(m *message, b []byte) error {
	const mostFDs = 253 // SCM_MAX_FD
	control := make([]byte, unix.CmsgSpace(4*mostFDs))
	for len(b) > 0 {
		// The net package asks for close-on-exec (MSG_CMSG_CLOEXEC).
		n, controlled, flags, _, err := c.sock.ReadMsgUnix(b, control)
		m.take(control[:controlled])
		if flags&unix.MSG_CTRUNC != 0 {
			m.truncated = true
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// take adds the descriptors in a control message to the message.
func (m *message) take(control []byte) {
	parts, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return
	}
	for i := range parts {
		fds, err := unix.ParseUnixRights(&parts[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			m.own(os.NewFile(uintptr(fd), "received descriptor"))
			m.received++
		}
	}
}

// decode returns nil for what cannot be decoded. The decoder panics on some input that the bus never
// lets pass; the service does not bet on that. It is not told the descriptors, so that it leaves the
// indexes in the body as they are.
func decode(b []byte) (m *godbus.Message) {
	defer func() {
		if recover() != nil {
			m = nil
		}
	}()
	m, err := godbus.DecodeMessage(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	return m
}

// send writes a message and returns its serial. Descriptors in its body stay the caller's.
func (c *conn) send(m *godbus.Message, reply chan<- *message) (uint32, error) {
	if len(m.Body) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(m.Body...))
	}
	count, err := m.CountFds()
	if err != nil {
		return 0, err
	}
	if count > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(count))
	}
	var buf bytes.Buffer
	fds, err := m.EncodeToWithFDs(&buf, binary.LittleEndian)
	if err != nil {
		return 0, err
	}
	var control []byte
	if count > 0 {
		control = unix.UnixRights(fds...)
	}

	c.writing.Lock()
	defer c.writing.Unlock()
	c.serial++
	if c.serial == 0 {
		c.serial++ // zero is no serial
	}
	// godbus has no way to set the serial of a message; on the wire it is bytes 8 to 11.
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], c.serial)
	if reply != nil {
		if err := c.expect(c.serial, reply); err != nil {
			return 0, err
		}
	}
	n, _, err := c.sock.WriteMsgUnix(buf.Bytes(), control, nil)
	if err == nil && n < buf.Len() {
		_, err = c.sock.Write(buf.Bytes()[n:])
	}
	if err != nil {
		return c.serial, fmt.Errorf("writing to the bus: %w", err)
	}
	return c.serial, nil
}

func (c *conn) expect(serial uint32, reply chan<- *message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return c.closed
	}
	c.waiting[serial] = reply
	return nil
}

// call calls a method of the bus itself and stores its results.
func (c *conn) call(ctx context.Context, member string, args []any, results ...any) error {
	return c.callOf(ctx, busCall(member, args), results...)
}

// callOf calls a method of anybody and stores its results, in which there can be no descriptors.
func (c *conn) callOf(ctx context.Context, call *godbus.Message, results ...any) error {
	m, err := c.ask(ctx, call)
	if err != nil {
		return err
	}
	defer m.close()
	return godbus.Store(m.Body, results...)
}

// ask calls a method and returns the answer, with the descriptors that came with it. The caller closes it.
func (c *conn) ask(ctx context.Context, call *godbus.Message) (*message, error) {
	name, _ := call.Headers[godbus.FieldMember].Value().(string)
	ch := make(chan *message, 1)
	serial, err := c.send(call, ch)
	if err != nil {
		return nil, err
	}
	select {
	case m, ok := <-ch:
		if !ok {
			return nil, c.closed
		}
		if m.Type == godbus.TypeError {
			defer m.close()
			return nil, fmt.Errorf("%s: %w", name, godbus.NewError(header(m, godbus.FieldErrorName), m.Body))
		}
		return m, nil
	case <-ctx.Done():
		c.mu.Lock()
		_, pending := c.waiting[serial]
		delete(c.waiting, serial)
		c.mu.Unlock()
		if !pending {
			if m, ok := <-ch; ok { // it came at the last moment
				m.close()
			}
		}
		return nil, fmt.Errorf("%s: %w", name, ctx.Err())
	}
}

func busCall(member string, args []any) *godbus.Message {
	const driver = "org.freedesktop.DBus"
	return bus.MethodCall(driver, "/org/freedesktop/DBus", driver, member, args)
}

// reply answers a call, unless its caller wants no answer.
func (c *conn) reply(to *message, body []any) error {
	return c.answer(to, godbus.TypeMethodReply, "", body)
}

// refuse answers a call with an error, unless its caller wants no answer.
func (c *conn) refuse(to *message, e *godbus.Error) error {
	return c.answer(to, godbus.TypeError, e.Name, e.Body)
}

func (c *conn) answer(to *message, kind godbus.Type, errorName string, body []any) error {
	if to.Flags&godbus.FlagNoReplyExpected != 0 {
		return nil
	}
	m := &godbus.Message{
		Type:  kind,
		Flags: godbus.FlagNoReplyExpected,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldReplySerial: godbus.MakeVariant(to.Serial()),
			godbus.FieldDestination: to.Headers[godbus.FieldSender],
		},
		Body: body,
	}
	if errorName != "" {
		m.Headers[godbus.FieldErrorName] = godbus.MakeVariant(errorName)
	}
	_, err := c.send(m, nil)
	return err
}

// emit sends a signal to whoever listens.
func (c *conn) emit(path godbus.ObjectPath, iface, member string, body ...any) error {
	_, err := c.send(&godbus.Message{
		Type:  godbus.TypeSignal,
		Flags: godbus.FlagNoReplyExpected,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldPath:      godbus.MakeVariant(path),
			godbus.FieldInterface: godbus.MakeVariant(iface),
			godbus.FieldMember:    godbus.MakeVariant(member),
		},
		Body: body,
	}, nil)
	return err
}

func (c *conn) close() error { return c.sock.Close() }
