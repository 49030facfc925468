package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/image"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
	"github.com/cntr-attach/cntr-attach/internal/status"
)

// patience bounds every wait of a test.
const patience = 10 * time.Second

// startBus runs a bus for one test, a real dbus-daemon, and makes it the system bus of this process.
func startBus(t *testing.T) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "bus.conf")
	text := `<busconfig><type>custom</type><listen>unix:dir=` + t.TempDir() + `</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon tells no address: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
}

// machines has one machine, "web", whose leader is this process.
type machines struct{}

func (machines) Find(_ context.Context, name string) (*machine.Machine, []*machine.Failure, error) {
	switch name {
	case "web":
		leader, err := machine.OpenLeader(os.Getpid())
		if err != nil {
			return nil, nil, err
		}
		m := &machine.Machine{Kind: "nspawn", Name: "web", Class: "container", Leader: leader}
		return m, []*machine.Failure{{Kind: "lxc", Err: errors.New("it is\xffbroken")}}, nil
	case "panic":
		panic("a machine to panic about")
	case "secret":
		return nil, nil, errors.New("cannot read /root/secret")
	}
	return nil, nil, fail.New(fail.NoSuchMachine, "did you mean web?", "no machine is called %q", name)
}

func (machines) List(context.Context) ([]machine.Info, error) {
	return []machine.Info{{Kind: "nspawn", Name: "web", Class: "container", Service: "test", Leader: os.Getpid()}}, nil
}

// store has one image, "tools".
type store struct{}

var tools = machine.ImageInfo{Name: "tools", Type: "directory", Path: "/srv/tools"}

func (store) Image(_ context.Context, name string) (machine.ImageInfo, error) {
	if name == tools.Name {
		return tools, nil
	}
	return machine.ImageInfo{}, fail.New(fail.NoSuchImage, "", "no %s", name)
}

func (store) Images(context.Context) ([]machine.ImageInfo, error) {
	return []machine.ImageInfo{tools}, nil
}

// sessions starts commands of this host in place of sessions.
type sessions struct {
	mu      sync.Mutex
	started int
	running []session.Info
	block   chan struct{} // Start waits for it to be closed, if there is one,
	blocked chan struct{} // and says so
}

// blockedSessions start when the test closes block.
func blockedSessions() *sessions {
	return &sessions{block: make(chan struct{}), blocked: make(chan struct{})}
}

// awaitBlocked waits until n more of them wait for block.
func (s *sessions) awaitBlocked(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-s.blocked:
		case <-time.After(patience):
			t.Fatal("nobody waits")
		}
	}
}

func (s *sessions) Start(ctx context.Context, m *machine.Machine, spec session.Spec) (*session.Session, error) {
	if s.block != nil {
		s.blocked <- struct{}{}
		select {
		case <-s.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if spec.Command[0] == "none" {
		return nil, fail.New(fail.CommandNotFound, "", "no command %q", spec.Command[0])
	}
	cmd := exec.Command(spec.Command[0], spec.Command[1:]...)
	if !spec.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = spec.Stdio[0], spec.Stdio[1], spec.Stdio[2]
	}
	cmd.ExtraFiles = []*os.File{spec.Status}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	leader, err := machine.OpenLeader(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started++
	info := session.Info{
		ID: fmt.Sprintf("%08x", s.started), Machine: m.Ref(), Class: m.Class, Command: spec.Command,
		Image: spec.Image.String(), User: spec.User, Started: time.Now(), PID: cmd.Process.Pid, Scope: "cntr-web.scope",
	}
	s.running = append(s.running, info)
	one := &session.Session{Info: info, Process: leader}
	if spec.Terminal {
		one.Terminal, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	}
	return one, err
}

func (s *sessions) Running(_ context.Context, known func(id string) bool) ([]*session.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*session.Session
	for _, info := range s.running {
		if known(info.ID) {
			continue
		}
		leader, err := machine.OpenLeader(info.PID)
		if fail.Is(err, fail.NotRunning) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, &session.Session{Info: info, Process: leader})
	}
	return list, nil
}

func (s *sessions) Terminate(_ context.Context, one *session.Session) error {
	if err := unix.PidfdSendSignal(int(one.Process.File.Fd()), unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	if !one.Process.Wait(patience) {
		return errors.New("it does not end")
	}
	return nil
}

func (s *sessions) Kill(one *session.Session, signal unix.Signal) error {
	return unix.PidfdSendSignal(int(one.Process.File.Fd()), signal, nil, 0)
}

func (s *sessions) Standing(*machine.Machine) (session.Standing, error) {
	return session.Standing{}, nil
}

func (s *sessions) Transport(*session.Session) string { return "/dev/fuse" }

func (s *sessions) Anticipate() {}

func (s *sessions) Usage(*session.Session) status.Usage { return status.Usage{CPUNSec: 7} }

func (s *sessions) Result(string) status.Status {
	return status.Status{Exit: 3, Wall: time.Second, Usage: &status.Usage{CPUNSec: 7}}
}

// service is a server that runs in this process.
type service struct {
	*sessions
	states chan string // what systemd was told
	ended  chan error
	stop   context.CancelFunc
	log    *bytes.Buffer // to be read once it has ended
}

func startService(t *testing.T, idle time.Duration, s *sessions) *service {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	v := &service{sessions: s, states: make(chan string, 1000), ended: make(chan error, 1), stop: stop, log: &bytes.Buffer{}}
	go func() {
		v.ended <- Serve(ctx, Config{
			Images:   image.Finder{Store: store{}},
			Machines: machines{}, Sessions: s, Version: "7", IdleTimeout: idle,
			Log:    slog.New(slog.NewTextHandler(v.log, nil)),
			Notify: func(state string) { v.states <- state },
		})
		close(v.states)
	}()
	v.await(t, "READY=1")
	t.Cleanup(func() {
		stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, info := range s.running {
			_ = unix.Kill(info.PID, unix.SIGKILL)
		}
	})
	return v
}

// await waits until systemd has been told something that begins with state.
func (v *service) await(t *testing.T, state string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got, more := <-v.states:
			if strings.HasPrefix(got, state) {
				return
			}
			if !more {
				t.Fatalf("the service ended and did not say %s", state)
			}
		case <-deadline:
			t.Fatalf("the service does not say %s", state)
		}
	}
}

// awaitEnd stops the service and returns its log.
func (v *service) awaitEnd(t *testing.T) string {
	t.Helper()
	v.stop()
	select {
	case err := <-v.ended:
		if err != nil {
			t.Fatalf("the service failed: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the service does not end")
	}
	return v.log.String()
}

func connectClient(t *testing.T) *dbus.Client {
	t.Helper()
	c, err := dbus.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// connectBus connects to the bus as a client that is not ours.
func connectBus(t *testing.T) *godbus.Conn {
	t.Helper()
	c, err := bus.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// openFiles returns how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// stranger is a connection that sends what no library would.
type stranger struct {
	*conn
	t *testing.T
}

func connectStranger(t *testing.T) *stranger {
	t.Helper()
	c, err := connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.read(func(m *message) { m.close() }) }()
	t.Cleanup(func() { _ = c.close() })
	var name string
	if err := c.call(context.Background(), "Hello", nil, &name); err != nil {
		t.Fatal(err)
	}
	return &stranger{conn: c, t: t}
}

// callWith calls a method with descriptors beside those in the body, and returns the error's name.
func (s *stranger) callWith(path godbus.ObjectPath, iface, name string, extra []int, body ...any) string {
	s.t.Helper()
	m := &godbus.Message{
		Type: godbus.TypeMethodCall,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(dbus.Name),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(name),
		},
		Body: body,
	}
	if len(body) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(body...))
	}
	count, err := m.CountFds()
	if err != nil {
		s.t.Fatal(err)
	}
	m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(count + len(extra)))
	var buf bytes.Buffer
	fds, err := m.EncodeToWithFDs(&buf, binary.LittleEndian)
	if err != nil {
		s.t.Fatal(err)
	}
	ch := make(chan *message, 1)
	s.writing.Lock()
	s.serial++
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], s.serial)
	err = s.expect(s.serial, ch)
	if err == nil {
		_, _, err = s.sock.WriteMsgUnix(buf.Bytes(), unix.UnixRights(append(fds, extra...)...), nil)
	}
	s.writing.Unlock()
	if err != nil {
		s.t.Fatal(err)
	}
	select {
	case reply, ok := <-ch:
		if !ok {
			s.t.Fatalf("%s: %v", name, s.closed)
		}
		defer reply.close()
		return header(reply, godbus.FieldErrorName)
	case <-time.After(patience):
		s.t.Fatalf("%s is not answered", name)
	}
	return ""
}
