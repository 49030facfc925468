//go:build integration

package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/bus"
)

// answerLimit is how long a call may take that nobody is asked for a password for.
const answerLimit = 25 * time.Second

// target is a method as the service describes it.
type target struct {
	path                   godbus.ObjectPath
	iface, name, signature string
}

// targets asks the service for its methods.
func targets(t *testing.T, conn *godbus.Conn, paths ...godbus.ObjectPath) []target {
	t.Helper()
	var all []target
	for _, path := range paths {
		var text string
		if err := conn.Object("org.cntr.Attach1", path).Call("org.freedesktop.DBus.Introspectable.Introspect", 0).Store(&text); err != nil {
			t.Fatal(err)
		}
		var node introspect.Node
		if err := xml.Unmarshal([]byte(text), &node); err != nil {
			t.Fatal(err)
		}
		for _, i := range node.Interfaces {
			for _, m := range i.Methods {
				in := ""
				for _, a := range m.Args {
					if a.Direction != "out" {
						in += a.Type
					}
				}
				all = append(all, target{path, i.Name, m.Name, in})
			}
		}
	}
	return all
}

// fuzzer makes calls of any kind. What it makes depends on its seed alone.
type fuzzer struct {
	*rand.Rand
	targets []target
	words   []string
	files   []*os.File
}

// optionNames are those that Attach has, so that their values are looked at.
var optionNames = []string{
	"user", "environment", "working-directory", "writable", "strict", "capabilities", "label", "properties", "terminal", "rows",
	"columns", "stdin", "stdout", "stderr", "image",
}

func newFuzzer(t *testing.T, seed uint64, all []target, session string) *fuzzer {
	t.Helper()
	f := &fuzzer{Rand: rand.New(rand.NewPCG(seed, 0)), targets: all}
	f.words = append([]string{
		"", "slim", "debu", "nspawn:slim", "nspawn:", ":", "pid:1", "pid:-1", "unit:dbus", "unit:../x", "docker:web", ".host", "true", "false",
		"cat", "/", "-/", "/tmp", "root", "0", "4294967295", "99999999999999999999", "A=b", "=", "CPUQuota=20%", "TasksMax=1e9", "MemoryMax=-1",
		"CAP_KILL", "~CAP_KILL", "machine", "off", "%s%n%x", "\x01\x1b[2J", "ä\u202e☃", strings.Repeat("x", 3000), "org.cntr.Attach1.Manager",
		"org.cntr.Attach1.Session", "Version", "State", session, session[:4],
	}, optionNames...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	memfd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f.files = []*os.File{r, w, os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket"), os.NewFile(uintptr(memfd), "memfd")}
	for name, flags := range map[string]int{"/etc/passwd": os.O_RDONLY, "/": unix.O_PATH, "/dev/null": os.O_RDWR, "/dev/ptmx": os.O_RDWR} {
		file, err := os.OpenFile(name, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.files = append(f.files, file)
	}
	t.Cleanup(func() {
		for _, file := range f.files {
			_ = file.Close()
		}
	})
	return f
}

func pick[T any](f *fuzzer, list []T) T { return list[f.IntN(len(list))] }

var simpleTypes = map[byte]reflect.Type{
	'y': reflect.TypeFor[byte](), 'b': reflect.TypeFor[bool](), 'n': reflect.TypeFor[int16](), 'q': reflect.TypeFor[uint16](),
	'i': reflect.TypeFor[int32](), 'u': reflect.TypeFor[uint32](), 'x': reflect.TypeFor[int64](), 't': reflect.TypeFor[uint64](),
	'd': reflect.TypeFor[float64](), 's': reflect.TypeFor[string](), 'o': reflect.TypeFor[godbus.ObjectPath](),
	'g': reflect.TypeFor[godbus.Signature](), 'h': reflect.TypeFor[godbus.UnixFD](), 'v': reflect.TypeFor[godbus.Variant](),
}

// typeOf returns the type that a signature begins with, and the rest of it. Structures do not occur in what is called.
func typeOf(signature string) (reflect.Type, string) {
	switch {
	case strings.HasPrefix(signature, "a{"):
		key, rest := typeOf(signature[2:])
		value, rest := typeOf(rest)
		return reflect.MapOf(key, value), rest[1:]
	case signature[0] == 'a':
		element, rest := typeOf(signature[1:])
		return reflect.SliceOf(element), rest
	}
	return simpleTypes[signature[0]], signature[1:]
}

func (f *fuzzer) value(of reflect.Type, depth int) reflect.Value {
	v := reflect.New(of).Elem()
	switch of {
	case simpleTypes['o']:
		v.SetString(string(pick(f, []godbus.ObjectPath{"/", "/org/cntr/Attach1", "/org/cntr/Attach1/session/x", pick(f, f.targets).path})))
		return v
	case simpleTypes['g']:
		return reflect.ValueOf(godbus.ParseSignatureMust(pick(f, []string{"", "s", "a{sv}", "aaaai"})))
	case simpleTypes['h']:
		v.SetInt(int64(pick(f, f.files).Fd()))
		return v
	case simpleTypes['v']:
		signature := pick(f, []string{"s", "b", "as", "q", "h", "i", "t", "d", "o", "a{sv}", "v", "ah", "ay", "aas"})
		if depth > 3 {
			signature = "s"
		}
		inner, _ := typeOf(signature)
		return reflect.ValueOf(godbus.MakeVariant(f.value(inner, depth+1).Interface()))
	}
	switch of.Kind() {
	case reflect.Bool:
		v.SetBool(f.IntN(2) == 0)
	case reflect.String:
		v.SetString(pick(f, f.words))
	case reflect.Float64:
		v.SetFloat(pick(f, []float64{0, -1, math.NaN(), math.Inf(1)}))
	case reflect.Slice:
		for range pick(f, []int{0, 1, 1, 2, 3, 20} /* godbus (v5.2.4) cannot send long messages with descriptors */) {
			v.Set(reflect.Append(v, f.value(of.Elem(), depth+1)))
			if of.Elem() == simpleTypes['h'] && v.Len() > 2 {
				break // the bus lets no more pass
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(of))
		for range f.IntN(4) {
			v.SetMapIndex(f.value(of.Key(), depth+1), f.value(of.Elem(), depth+1))
		}
	case reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(pick(f, []int64{0, 1, -1, 9, 64, 65, math.MinInt64, math.MaxInt64}))
	default:
		v.SetUint(pick(f, []uint64{0, 1, 80, math.MaxUint64}))
	}
	return v
}

// call makes up a call.
func (f *fuzzer) call() *godbus.Message {
	to := pick(f, f.targets)
	signature := to.signature
	switch f.IntN(20) {
	case 0:
		signature = pick(f, []string{"", "s", "ss", "h", "hhh", "a{sv}", "sasa{sv}s", "v", "t"})
	case 1:
		to.name = pick(f, []string{"", "X", "attach", to.name + "2"})
		if to.name == "" {
			to.name = "A"
		}
	case 2:
		to.iface = pick(f, []string{"org.cntr.Attach1", "org.cntr.Attach1.Session", "org.cntr.Attach1.Manager", "org.example.X"})
	case 3:
		to.path = pick(f, []godbus.ObjectPath{"/", "/org", "/org/cntr/Attach1/session", "/org/cntr/Attach1/session/x/y", "/org/cntr/Attach1/session/_"})
	}
	m := &godbus.Message{
		Type: godbus.TypeMethodCall,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant("org.cntr.Attach1"), godbus.FieldPath: godbus.MakeVariant(to.path),
			godbus.FieldInterface: godbus.MakeVariant(to.iface), godbus.FieldMember: godbus.MakeVariant(to.name),
		},
	}
	if f.IntN(10) == 0 {
		delete(m.Headers, godbus.FieldInterface)
	}
	if f.IntN(10) == 0 {
		m.Flags |= godbus.FlagAllowInteractiveAuthorization
	}
	for signature != "" {
		var of reflect.Type
		of, signature = typeOf(signature)
		m.Body = append(m.Body, f.value(of, 0).Interface())
	}
	if len(m.Body) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(m.Body...))
	}
	return m
}

// connectAs connects to the bus as a user. The bus goes by who connects.
func connectAs(t *testing.T, uid int) *godbus.Conn {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become := func(uid int) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			panic(errno) // the thread is good for nothing any more
		}
	}
	become(uid)
	defer become(0)
	conn, err := bus.Connect(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// fuzz makes calls until the time is over, and returns how many were answered, by the name of the error, and the
// longest time that it took.
func (f *fuzzer) fuzz(t *testing.T, conn *godbus.Conn, until time.Time) (answers map[string]int, longest time.Duration) {
	answers = map[string]int{}
	for time.Now().Before(until) && !t.Failed() {
		m := f.call()
		ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
		begin := time.Now()
		call := conn.SendWithContext(ctx, m, make(chan *godbus.Call, 1))
		<-call.Done
		cancel()
		longest = max(longest, time.Since(begin))
		name := bus.ErrorName(call.Err)
		if call.Err != nil && name == "" {
			t.Errorf("%v: %v", m, call.Err)
		}
		if name == "org.freedesktop.DBus.Error.NoReply" || errors.Is(call.Err, context.DeadlineExceeded) {
			t.Errorf("not answered: %v", m)
		}
		answers[name]++
		for _, v := range call.Body {
			closeFDs(v)
		}
	}
	return answers, longest
}

// closeFDs closes the descriptors in an answer: sessions that were started end with that.
func closeFDs(v any) {
	switch v := v.(type) {
	case godbus.UnixFD:
		_ = unix.Close(int(v))
	case map[string]godbus.Variant:
		for _, one := range v {
			closeFDs(one.Value())
		}
	}
}

// Calls of any kind, by root and by somebody with few rights, do not harm the service: it answers all of them, and neither
// crashes nor keeps anything. $CNTR_FUZZ says how long, $CNTR_FUZZ_SEED repeats a run.
func TestRandomCallsDoNoHarm(t *testing.T) {
	long := 6 * time.Second
	if s := os.Getenv("CNTR_FUZZ"); s != "" {
		var err error
		if long, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CNTR_FUZZ_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	c := connect(t)
	s := attach(t, c, "slim")
	d := serviceProcess(t)
	since := fmt.Sprintf("--since=@%d", time.Now().Unix())
	all := targets(t, connectAs(t, 0), "/org/cntr/Attach1", godbus.ObjectPath("/org/cntr/Attach1/session/"+s.ID))
	var calls atomic.Int64
	total := map[string]int{}
	var slowest time.Duration
	round := func(n uint64, long time.Duration) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		until := time.Now().Add(long)
		for i, uid := range []int{0, 0, 1000} {
			f, conn := newFuzzer(t, seed+n+uint64(i), all, s.ID), connectAs(t, uid)
			wg.Add(1)
			go func() {
				defer wg.Done()
				answers, longest := f.fuzz(t, conn, until)
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, longest)
				for name, n := range answers {
					total[name] += n
					calls.Add(int64(n))
				}
			}()
		}
		wg.Wait()
		s.finish(t) // if it was not ended meanwhile
		awaitNoSession(t, c)
	}
	round(0, long/3)
	files, before := settledDescriptors(t, d), memoryOf(t, d.PID)
	round(1000, long*2/3)
	awaitDescriptors(t, d, files)
	after := memoryOf(t, d.PID)
	var names []string
	for name, n := range total {
		names = append(names, fmt.Sprintf("%s %d", name[strings.LastIndexByte(name, '.')+1:], n))
	}
	slices.Sort(names)
	t.Logf("%d calls, the longest took %v; the service has %d descriptors, %.1f MiB of memory, %.1f after a third\nanswers: %s",
		calls.Load(), slowest.Round(time.Millisecond), files, mib(after.private), mib(before.private), strings.Join(names, ", "))
	if !d.Alive() {
		t.Error("the service was started anew")
	}
	if grown := int64(after.private) - int64(before.private); grown > 16<<20 {
		t.Errorf("the service has grown by %.1f MiB", mib(uint64(grown)))
	}
	if out, _ := try(t, "journalctl", "--unit="+unit, since, "--output=cat", "--no-pager", "--grep=panic|goroutine|fatal error", "--lines=40", "--quiet", "--case-sensitive=true"); out != "" {
		t.Errorf("the journal has\n%s", out)
	}
}
