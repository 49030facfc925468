package server

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

func TestListMachines(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	list, err := connectClient(t).ListMachines(context.Background())
	if err != nil || len(list) != 1 || list[0].Name != "web" || list[0].Leader != uint32(os.Getpid()) {
		t.Fatalf("ListMachines = %+v, %v", list, err)
	}
}

func TestAttachWithPipes(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	c := connectClient(t)
	signals := make(chan *godbus.Signal, 10)
	conn := connectBus(t)
	conn.Signal(signals)
	if err := conn.AddMatchSignal(godbus.WithMatchInterface(dbus.ManagerInterface)); err != nil {
		t.Fatal(err)
	}
	in, inWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outRead, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer outRead.Close()
	a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"cat"}, Stdin: in, Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Status.Close()
	if a.Terminal != nil {
		t.Error("a terminal that was not asked for")
	}
	if len(a.Notes) != 1 || a.Notes[0] != "lxc: it is\uFFFDbroken" {
		t.Errorf("notes %q", a.Notes)
	}
	_ = in.Close()
	_ = out.Close()
	want := []byte("a\x00\xff\nb")
	if _, err := inWrite.Write(want); err != nil {
		t.Fatal(err)
	}
	_ = inWrite.Close()
	got, err := io.ReadAll(outRead)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("through cat came %q, %v", got, err)
	}
	// The fake session leaves its status pipe alone: its end is all that comes.
	if got, err := io.ReadAll(a.Status); err != nil || len(got) != 0 {
		t.Errorf("status = %q, %v", got, err)
	}
	var names []string
	for len(names) < 2 {
		select {
		case s := <-signals:
			name, ours := strings.CutPrefix(s.Name, dbus.ManagerInterface+".")
			if !ours {
				continue // of the bus itself
			}
			names = append(names, name)
			if s.Body[0] != a.ID || s.Body[1] != sessionPath(a.ID) {
				t.Errorf("signal %s%v, want session %s", s.Name, s.Body, a.ID)
			}
		case <-time.After(patience):
			t.Fatalf("signals: only %q", names)
		}
	}
	if names[0] != "SessionNew" || names[1] != "SessionRemoved" {
		t.Errorf("signals %q", names)
	}
	if list, err := c.ListSessions(context.Background()); err != nil || len(list) != 0 {
		t.Errorf("ListSessions after the end = %v, %v", list, err)
	}
}

func TestAttachWithTerminal(t *testing.T) {
	startBus(t)
	v := startService(t, 0, &sessions{})
	c := connectClient(t)
	before := openFiles(t)
	a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"sleep", "60"}, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	if a.Terminal == nil {
		t.Fatal("no terminal")
	}
	if err := c.TerminateSession(context.Background(), a.ID); err != nil {
		t.Fatal(err)
	}
	v.await(t, "STATUS=No sessions")
	_ = a.Terminal.Close()
	_ = a.Status.Close()
	awaitFiles(t, before)
}

// awaitFiles waits until no more descriptors are open than before. What a server closes after its
// answer cannot be waited for in another way.
func awaitFiles(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		now := openFiles(t)
		if now <= before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors were open, now %d", before, now)
		}
	}
}

func TestErrorsKeepCodeMessageAndHint(t *testing.T) {
	startBus(t)
	v := startService(t, 0, &sessions{})
	c := connectClient(t)
	attach := func(name string, o dbus.AttachOptions) error {
		_, err := c.Attach(context.Background(), name, o)
		return err
	}
	run := dbus.AttachOptions{Command: []string{"true"}}
	for _, test := range []struct {
		err           error
		code          fail.Code
		message, hint string
	}{
		{attach("wb", run), fail.NoSuchMachine, `no machine is called "wb"`, "did you mean web?"},
		{attach("web", dbus.AttachOptions{Command: []string{"none"}}), fail.CommandNotFound, `no command "none"`, ""},
		{attach("secret", run), fail.Internal, internalMessage, ""},
		{attach("panic", run), fail.Internal, internalMessage, ""},
		{attach("web", dbus.AttachOptions{Command: []string{""}}), fail.InvalidArgument, "invalid argv: it names no command", ""},
		{attach("web", dbus.AttachOptions{Command: []string{"true"}, Image: "tols"}), fail.NoSuchImage, `no image is called "tols"`, "did you mean tools?"},
		{attach("web", dbus.AttachOptions{Command: []string{"true"}, Image: "machine:wb"}), fail.NoSuchMachine, `no machine is called "wb"`, "did you mean web?"},
		{
			attach("web", dbus.AttachOptions{Command: []string{"true"}, Image: "srv/tools"}), fail.InvalidArgument,
			`invalid option image: invalid image "srv/tools": it is no absolute path`, "give an absolute path",
		},
		{attach("web", dbus.AttachOptions{}), fail.InvalidArgument, "invalid argv: it names no command", ""},
		{
			attach("web", dbus.AttachOptions{Command: []string{"\xff"}}), fail.InvalidArgument,
			`argument "\xff" cannot go over the bus: it is not UTF-8`, "as root, --direct takes any bytes",
		},
		{
			attach("web", dbus.AttachOptions{Command: []string{"true"}, Environment: []string{"=x"}}), fail.InvalidArgument,
			`invalid option environment: "=x" is not NAME=VALUE`, "",
		},
		{
			attach("web", dbus.AttachOptions{Command: []string{"true"}, WorkingDirectory: "tmp"}), fail.InvalidArgument,
			`invalid option working-directory: "tmp" is not an absolute path`, "",
		},
		{
			c.TerminateSession(context.Background(), "1"), fail.NoSuchSession, `no session has the id "1"`,
			"cntrctl sessions shows the ids",
		},
	} {
		got := fail.From(test.err)
		if got == nil || got.Code != test.code || got.Message != test.message || got.Hint != test.hint {
			t.Errorf("got %#v, want %s %q %q", got, test.code, test.message, test.hint)
		}
	}
	log := v.awaitEnd(t)
	for _, want := range []string{"/root/secret", "a machine to panic about"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not tell of %q:\n%s", want, log)
		}
	}
}

func TestDescriptorsOfRefusedCallsAreClosed(t *testing.T) {
	startBus(t)
	v := startService(t, 0, &sessions{})
	s := connectStranger(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	file, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, f := godbus.UnixFD(read.Fd()), godbus.UnixFD(write.Fd()), godbus.UnixFD(file.Fd())
	many := func(n int) (fds []int) {
		for range n {
			fds = append(fds, int(w))
		}
		return fds
	}
	options := func(pairs ...any) map[string]godbus.Variant {
		o := map[string]godbus.Variant{}
		for i := 0; i < len(pairs); i += 2 {
			o[pairs[i].(string)] = godbus.MakeVariant(pairs[i+1])
		}
		return o
	}
	none := options()
	const invalid, unknown = standardError + "InvalidArgs", standardError + "Unknown"
	argv := []string{"true"}
	attach := func(extra []int, body ...any) func() string {
		return func() string { return s.callWith(dbus.ManagerPath, dbus.ManagerInterface, "Attach", extra, body...) }
	}
	for name, test := range map[string]struct {
		want string
		call func() string
	}{
		"unasked":           {invalid, attach(many(1), "web", argv, none)},
		"unasked, no such":  {invalid, attach(many(3), "no", argv, none)},
		"too many":          {invalid, attach(many(4), "web", argv, none)},
		"far too many":      {invalid, attach(many(16), "web", argv, none)},
		"wrong type":        {invalid, attach(many(2), "web")},
		"unknown option":    {invalid, attach(nil, "web", argv, options("shell", w))},
		"read from a write": {invalid, attach(nil, "web", argv, options("stdin", w))},
		"write to a read":   {invalid, attach(nil, "web", argv, options("stdout", r))},
		"a file":            {invalid, attach(nil, "web", argv, options("stdin", f))},
		"with a terminal":   {invalid, attach(nil, "web", argv, options("stdin", r, "terminal", true))},
		"array of them":     {invalid, attach(nil, "web", argv, options("stdin", []godbus.UnixFD{r, w}))},
		"as an argument":    {invalid, attach(nil, "web", []godbus.UnixFD{r, w}, none)},
		"the same twice":    {dbus.Name + ".NoSuchMachine", attach(nil, "no", argv, options("stdout", w, "stderr", w))},
		"no such machine":   {dbus.Name + ".NoSuchMachine", attach(nil, "no", argv, options("stdin", r, "stdout", w, "stderr", w))},
		"no command":        {dbus.Name + ".CommandNotFound", attach(nil, "web", []string{"none"}, options("stdin", r))},
		"panic":             {standardError + "Failed", attach(nil, "panic", argv, options("stdin", r))},
		"no descriptors taken": {invalid, func() string {
			return s.callWith(dbus.ManagerPath, dbus.ManagerInterface, "ListMachines", many(2))
		}},
		"unknown method": {unknown + "Method", func() string {
			return s.callWith(dbus.ManagerPath, dbus.ManagerInterface, "Detach", many(2))
		}},
		"unknown interface": {unknown + "Interface", func() string {
			return s.callWith(dbus.ManagerPath, "org.example", "Attach", many(2))
		}},
		"unknown object": {unknown + "Object", func() string {
			return s.callWith("/org/example", dbus.ManagerInterface, "Attach", many(2))
		}},
		"ping": {invalid, func() string { return s.callWith("/", peerInterface, "Ping", many(2)) }},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.call(); got != test.want { // once, to have all open that stays open
				t.Fatalf("error %q, want %q", got, test.want)
			}
			before := openFiles(t)
			for range 50 {
				test.call()
			}
			awaitFiles(t, before)
		})
	}
	if v.started != 0 {
		t.Errorf("%d sessions were started", v.started)
	}
}

func TestUnansweredCallsLeakNothing(t *testing.T) {
	startBus(t)
	v := startService(t, 0, &sessions{})
	conn := connectBus(t)
	before := openFiles(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	conn.Object(dbus.Name, dbus.ManagerPath).Call(dbus.ManagerInterface+".Attach", godbus.FlagNoReplyExpected,
		"web", []string{"true"}, map[string]godbus.Variant{"stdin": godbus.MakeVariant(godbus.UnixFD(r.Fd()))})
	v.await(t, "STATUS=1 session")
	v.await(t, "STATUS=No sessions")
	_ = r.Close()
	_ = w.Close()
	awaitFiles(t, before)
}

func TestIntrospectionMatchesMethods(t *testing.T) {
	all := newObjects()
	for _, o := range []object{all.between, all.manager, all.session} {
		node := parseIntrospection(t, o)
		described := map[string]string{} // types of arguments by method
		for _, i := range node.Interfaces {
			for _, f := range i.Methods {
				in := ""
				for _, a := range f.Args {
					if a.Direction != "out" {
						in += a.Type
					}
				}
				described[i.Name+"."+f.Name] = in
			}
		}
		for iface, methods := range o {
			for name, f := range methods {
				in, ok := described[iface+"."+name]
				if !ok || in != f.in {
					t.Errorf("%s.%s takes %q, described as %q, %v", iface, name, f.in, in, ok)
				}
				delete(described, iface+"."+name)
			}
		}
		for name := range described {
			t.Errorf("%s is described and not there", name)
		}
	}
}

func TestPropertiesMatchIntrospection(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	c := connectClient(t)
	a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"sleep", "60"}, User: "nobody"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Status.Close()
	conn := connectBus(t)
	o := conn.Object(dbus.Name, sessionPath(a.ID))
	var all map[string]godbus.Variant
	if err := o.Call(propertiesInterface+".GetAll", 0, dbus.SessionInterface).Store(&all); err != nil {
		t.Fatal(err)
	}
	for _, i := range parseIntrospection(t, newObjects().session).Interfaces {
		for _, p := range i.Properties {
			v, ok := all[p.Name]
			if !ok || v.Signature().String() != p.Type || p.Access != "read" {
				t.Errorf("property %s %s is %v", p.Name, p.Type, v)
			}
			delete(all, p.Name)
		}
	}
	if len(all) > 0 {
		t.Errorf("not described: %v", all)
	}
	user, err := o.GetProperty(dbus.SessionInterface + ".User")
	if err != nil || user.Value() != "nobody" {
		t.Errorf("User = %v, %v", user, err)
	}
	if err := o.SetProperty(dbus.SessionInterface+".User", godbus.MakeVariant("root")); err == nil {
		t.Error("User can be set")
	}
	changed := make(chan *godbus.Signal, 1)
	conn.Signal(changed)
	if err := conn.AddMatchSignal(godbus.WithMatchInterface(propertiesInterface)); err != nil {
		t.Fatal(err)
	}
	if err := o.Call(dbus.SessionInterface+".Terminate", 0).Err; err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-changed:
		values, _ := s.Body[1].(map[string]godbus.Variant)
		if values["State"].Value() != "closing" {
			t.Errorf("PropertiesChanged %v", s.Body)
		}
	case <-time.After(patience):
		t.Error("no PropertiesChanged")
	}
}

func TestSecondServiceIsRefused(t *testing.T) {
	startBus(t)
	startService(t, 0, &sessions{})
	err := Serve(context.Background(), Config{
		Machines: machines{}, Sessions: &sessions{}, Notify: func(string) { t.Error("it says it is ready") },
	})
	if err == nil || !strings.Contains(err.Error(), "another cntr-attachd runs") {
		t.Errorf("a second service: %v", err)
	}
}

func TestNewServiceFindsSessions(t *testing.T) {
	startBus(t)
	s := &sessions{}
	first := startService(t, 0, s)
	c := connectClient(t)
	a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Status.Close()
	first.awaitEnd(t)
	second := startService(t, 0, s)
	list, err := c.ListSessions(context.Background())
	if err != nil || len(list) != 1 || list[0].ID != a.ID {
		t.Fatalf("ListSessions = %v, %v, want %s", list, err, a.ID)
	}
	if err := c.TerminateSession(context.Background(), a.ID); err != nil {
		t.Fatal(err)
	}
	second.await(t, "STATUS=No sessions")
}

func TestIdleServiceEnds(t *testing.T) {
	startBus(t)
	v := startService(t, 50*time.Millisecond, &sessions{})
	v.await(t, "STOPPING=1")
	v.awaitEnd(t)
}

func TestServiceWithSessionStays(t *testing.T) {
	startBus(t)
	v := startService(t, 50*time.Millisecond, &sessions{})
	c := connectClient(t)
	a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"sleep", "0.4"}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Status.Close()
	v.await(t, "STATUS=No sessions") // fails should it end before
	v.await(t, "STOPPING=1")
}

// A call that is being answered when the service is told to stop gets its answer.
func TestStopAnswersCalls(t *testing.T) {
	startBus(t)
	s := blockedSessions()
	v := startService(t, 0, s)
	c := connectClient(t)
	result := make(chan error, 1)
	go func() {
		a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"sleep", "60"}})
		if err == nil {
			_ = a.Status.Close()
		}
		result <- err
	}()
	s.awaitBlocked(t, 1)
	v.stop()
	v.await(t, "STOPPING=1")
	close(s.block)
	if err := <-result; err != nil {
		t.Errorf("Attach: %v", err)
	}
	v.awaitEnd(t)
}

func TestCallsRunConcurrently(t *testing.T) {
	startBus(t)
	s := blockedSessions()
	v := startService(t, 0, s)
	c := connectClient(t)
	var wg sync.WaitGroup
	errs := make(chan error, 50)
	for range cap(errs) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			a, err := c.Attach(context.Background(), "web", dbus.AttachOptions{Command: []string{"true"}})
			if err == nil {
				_ = a.Status.Close()
			}
			errs <- err
		}()
	}
	s.awaitBlocked(t, cap(errs))
	if _, err := c.ListMachines(context.Background()); err != nil {
		t.Fatal(err)
	}
	close(s.block)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	v.await(t, "STATUS=No sessions")
}

func TestServiceEndsWithItsBus(t *testing.T) {
	startBus(t)
	v := startService(t, 0, &sessions{})
	s := connectStranger(t)
	var pid uint32
	if err := s.call(context.Background(), "GetConnectionUnixProcessID", []any{"org.freedesktop.DBus"}, &pid); err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(int(pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-v.ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(patience):
		t.Error("the service goes on without a bus")
	}
}
