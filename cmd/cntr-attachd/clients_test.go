//go:build integration

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// client is a program that calls methods, none of ours. call returns what the answer holds, flat and sorted: clients
// write the same values in ways of their own, and a dictionary has no order.
type client struct {
	name string
	call func(t *testing.T, path, iface, method, signature string, args ...string) []string
}

// pythonClient calls a method with python3-dbus and prints the answer as JSON.
const pythonClient = `
import dbus, json, sys
path, iface, method, signature = sys.argv[1:5]
convert = {"s": str, "i": int, "u": int}
args = [convert[c](a) for c, a in zip(signature, sys.argv[5:])]
o = dbus.SystemBus().get_object("org.cntr.Attach1", path, introspect=False)
print(json.dumps(o.get_dbus_method(method, iface)(*args, signature=signature)))
`

func clients(t *testing.T) []client {
	t.Helper()
	script := filepath.Join(t.TempDir(), "client.py")
	if err := os.WriteFile(script, []byte(pythonClient), 0o600); err != nil {
		t.Fatal(err)
	}
	return []client{
		{"busctl", func(t *testing.T, path, iface, method, signature string, args ...string) []string {
			command := []string{"busctl", "--json=short", "call", "org.cntr.Attach1", path, iface, method}
			if signature != "" {
				command = append(append(command, signature), args...)
			}
			return flatJSON(t, must(t, command...))
		}},
		{"gdbus", func(t *testing.T, path, iface, method, signature string, args ...string) []string {
			command := []string{"gdbus", "call", "--system", "--dest=org.cntr.Attach1", "--object-path=" + path, "--method=" + iface + "." + method, "--"}
			return flatVariant(must(t, append(command, args...)...))
		}},
		{"python3-dbus", func(t *testing.T, path, iface, method, signature string, args ...string) []string {
			return flatJSON(t, must(t, append([]string{"python3", script, path, iface, method, signature}, args...)...))
		}},
	}
}

// flatJSON returns all strings, numbers and truths in JSON. The types that busctl adds are left out.
func flatJSON(t *testing.T, text string) []string {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var value any
	if text == "" {
		return nil
	}
	if err := decoder.Decode(&value); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var all []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if data, typed := v["data"]; typed && v["type"] != nil {
				walk(data)
				return
			}
			for name, one := range v {
				all = append(all, name)
				walk(one)
			}
		case []any:
			for _, one := range v {
				walk(one)
			}
		case bool, json.Number, string:
			text := fmt.Sprint(v)
			switch text { // python3-dbus has numbers for these
			case "true":
				text = "1"
			case "false":
				text = "0"
			}
			all = append(all, text)
		}
	}
	walk(value)
	slices.Sort(all)
	return all
}

// variantToken is a string, number or truth in the text of a GVariant; a type in front of one is not.
var variantToken = regexp.MustCompile(`'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|\b(true|false|-?\d+)\b`)

func flatVariant(text string) []string {
	var all []string
	for _, m := range variantToken.FindAllStringSubmatch(text, -1) {
		switch token := m[1] + m[2] + m[3]; {
		case m[3] == "true":
			all = append(all, "1")
		case m[3] == "false":
			all = append(all, "0")
		default:
			all = append(all, token)
		}
	}
	slices.Sort(all)
	return all
}

// Every method that can be called from a command line says the same to three clients that we did not write.
func TestOtherClientsAgree(t *testing.T) {
	s := attach(t, connect(t), "debu")
	const (
		root    = "/org/cntr/Attach1"
		manager = "org.cntr.Attach1.Manager"
		one     = "org.cntr.Attach1.Session"
		std     = "org.freedesktop.DBus."
	)
	object := root + "/session/" + s.ID
	must(t, "systemctl", "freeze", "cntr-debu-"+s.ID+".scope") // nothing is counted meanwhile
	thaw := func() { must(t, "systemctl", "thaw", "cntr-debu-"+s.ID+".scope") }
	defer thaw()
	for _, c := range []struct {
		path, iface, method, signature string
		args                           []string
		has                            string // among the answer
	}{
		{root, manager, "ListMachines", "", nil, "systemd-nspawn"},
		{root, manager, "ResolveMachine", "s", []string{"slim"}, "nspawn:slim"},
		{root, manager, "ListSessions", "", nil, s.ID},
		{root, manager, "GetSession", "s", []string{s.ID}, object},
		{root, manager, "KillSession", "si", []string{s.ID, "18"}, ""},
		{root, manager, "ListImages", "", nil, "host"},
		{root, std + "Properties", "GetAll", "s", []string{manager}, "Version"},
		{root, std + "Properties", "Get", "ss", []string{manager, "Version"}, ""},
		{root, std + "ObjectManager", "GetManagedObjects", "", nil, object},
		{root, std + "Peer", "Ping", "", nil, ""},
		{root, std + "Peer", "GetMachineId", "", nil, ""},
		{object, std + "Properties", "GetAll", "s", []string{one}, "nspawn:debu"},
		{object, std + "Properties", "Get", "ss", []string{one, "Machine"}, "nspawn:debu"},
		{object, one, "Kill", "i", []string{"18"}, ""},
	} {
		var first []string
		for i, client := range clients(t) {
			got := client.call(t, c.path, c.iface, c.method, c.signature, c.args...)
			if c.has != "" && !slices.Contains(got, c.has) {
				t.Errorf("%s of %s by %s: %q is not in %q", c.method, c.path, client.name, c.has, got)
			}
			if i == 0 {
				first = got
			} else if !slices.Equal(got, first) {
				t.Errorf("%s of %s by %s: %q, by busctl %q", c.method, c.path, client.name, got, first)
			}
		}
	}
	thaw()
	for _, client := range clients(t) {
		for _, method := range [][]string{{root, manager, "TerminateSession"}, {"", one, "Terminate"}} {
			s := attach(t, connect(t), "slim")
			if method[0] == "" {
				client.call(t, root+"/session/"+s.ID, method[1], method[2], "")
			} else {
				client.call(t, method[0], method[1], method[2], "s", s.ID)
			}
			if end := s.finish(t); !end.Terminated {
				t.Errorf("%s by %s: %+v", method[2], client.name, end)
			}
		}
	}
}

// Attach with descriptors, from Python: with pipes, and with a terminal.
func TestAttachFromPython(t *testing.T) {
	script := filepath.Join(t.TempDir(), "attach.py")
	const text = `
import dbus, json, os
m = dbus.Interface(dbus.SystemBus().get_object("org.cntr.Attach1", "/org/cntr/Attach1"), "org.cntr.Attach1.Manager")
r, w = os.pipe()
id, path, status, results = m.Attach("debu", ["sh", "-c", "echo $A; pwd; exit 3"], {
    "stdout": dbus.types.UnixFd(w), "environment": dbus.Array(["A=b c"], signature="s"), "working-directory": "/tmp",
    "properties": dbus.Array(["TasksMax=64"], signature="s")})
os.close(w)
print(os.fdopen(r).read(), end="")
print(json.load(os.fdopen(status.take()))["exit"])
id, path, status, results = m.Attach("debu", ["sh", "-c", "read x; stty size; echo $x"],
    {"terminal": True, "rows": dbus.UInt16(33), "columns": dbus.UInt16(99)})
terminal = results["terminal"].take()
os.write(terminal, b"typed\n")
out = b""
try:
    while True:
        out += os.read(terminal, 1000)
except OSError:
    pass
print(out.decode())
print(json.load(os.fdopen(status.take()))["exit"])
`
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(must(t, "python3", script), "\r", "")
	if want := "b c\n/tmp\n3\ntyped\n33 99\ntyped\n\n0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The example that the packages have does what it says.
func TestExampleInPython(t *testing.T) {
	for command, want := range map[string]string{"echo a; exit 3": "a: exit status 3", "echo b; kill -9 $$": "b: exit status 137"} {
		out, err := exec.CommandContext(bounded(t), "python3", "../../packaging/examples/attach.py", "debu", "sh", "-c", command).CombinedOutput()
		if got := fmt.Sprintf("%s: %v", bytes.TrimSpace(out), err); got != want {
			t.Errorf("%q: got %q, want %q", command, got, want)
		}
	}
}

// Every signal reaches those who listen, and tells nothing of what runs where.
func TestSignalsReachOtherClients(t *testing.T) {
	serviceProcess(t)
	want := []string{"SessionNew", "InterfacesAdded", "PropertiesChanged", "SessionRemoved", "InterfacesRemoved"}
	var waits []func()
	for _, listener := range []struct {
		ready string
		args  []string
	}{
		{"is owned by", []string{"gdbus", "monitor", "--system", "--dest", "org.cntr.Attach1"}},
		{"Monitoring", []string{"busctl", "monitor", "org.cntr.Attach1"}},
		{"NameLost", []string{"dbus-monitor", "--system", "type=signal,sender=org.cntr.Attach1"}},
	} {
		cmd := exec.Command(listener.args[0], listener.args[1:]...)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(r)
		for lines.Scan() && !strings.Contains(lines.Text(), listener.ready) {
		}
		waits = append(waits, func() {
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = r.Close() }()
			left := slices.Clone(want)
			for len(left) > 0 && lines.Scan() {
				left = slices.DeleteFunc(left, func(name string) bool { return strings.Contains(lines.Text(), name) })
				if strings.Contains(lines.Text(), "a-secret") || strings.Contains(lines.Text(), "nspawn:") {
					t.Errorf("%s is told %s", listener.args[0], lines.Text())
				}
			}
			if len(left) > 0 {
				t.Errorf("%s does not see %q", listener.args[0], left)
			}
		})
	}
	id := attach(t, connect(t), "slim").ID
	must(t, "gdbus", "call", "--system", "--dest=org.cntr.Attach1", "--object-path=/org/cntr/Attach1/session/"+id,
		"--method=org.cntr.Attach1.Session.Terminate")
	for _, wait := range waits {
		wait()
	}
}
