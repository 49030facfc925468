//go:build integration

package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machineTool starts machines of all kinds, see internal/testhost.
const machineTool = "/usr/lib/testhost/machine"

// kinds are the machines that the acceptance suite attaches to. A full root is a Debian, a slim one has a
// program and its libraries.
var kinds = []struct {
	title string
	roots []string
	kind  string // for machineTool; empty for the machines that always run
	ref   string // how the machine NAME is called
}{
	{"nspawn, booted", []string{"full"}, "", booted},
	{"nspawn `-U`, booted", []string{"full"}, "", userns},
	{"nspawn `-U`", []string{"slim"}, "nspawn-users", "nspawn:NAME"},
	{"nspawn `--as-pid2`", []string{"full", "slim"}, "nspawn-as-pid2", "nspawn:NAME"},
	{"nspawn `--read-only`", []string{"full", "slim"}, "nspawn-read-only", "nspawn:NAME"},
	{"nspawn, disk image", []string{"full", "slim"}, "nspawn-image", "nspawn:NAME"},
	{"LXC, privileged", []string{"full", "slim"}, "lxc", "lxc:NAME"},
	{"LXC, user namespace", []string{"full", "slim"}, "lxc-mapped", "lxc:NAME"},
	{"Docker", []string{"full", "slim"}, "docker", "docker:NAME"},
	{"Podman", []string{"full", "slim"}, "podman", "podman:NAME"},
	{"Podman, rootless", []string{"full", "slim"}, "podman-user", "podman:NAME@alice"},
	{"Incus", []string{"full", "slim"}, "incus", "incus:NAME"},
	{"hardened service", []string{"full", "slim"}, "service", "unit:machine-NAME"},
	{"`unshare`", []string{"full", "slim"}, "unshare", "pid:LEADER"},
}

// subject is a machine that the suite attaches to.
type subject struct {
	ref    string
	leader int
	main   int    // the process that does the machine's work
	inside string // its process id in the machine
	slim   bool   // the program is "slim", with symbols
	caps   uint64 // the leader's bounding set
	user   []string
	image  []string // the option, if the tools are not the host's
}

// by returns what cntr-attach is called with to run a command in the machine.
func (s *subject) by(command ...string) []string {
	return slices.Concat(s.image, []string{s.ref}, command)
}

// as does so for a command that is to look at the machine's processes.
func (s *subject) as(command ...string) []string {
	return slices.Concat(s.image, s.user, []string{s.ref}, command)
}

// cases are what has to work in each.
var cases = []struct {
	title string
	needs uint64 // capabilities of the machine; without them the attempt fails
	check func(*subject, *testing.T)
}{
	{"exit status", 0, (*subject).exitStatus},
	{"pipes", 0, (*subject).pipes},
	{"terminal", 0, (*subject).terminal},
	{"namespaces", 0, (*subject).namespaces},
	{"root", 0, (*subject).root},
	{"gdb", 0, (*subject).gdb},
	{"strace", 0, (*subject).strace},
	{"ps, lsof, ss", 0, (*subject).looks},
	{"tcpdump", 1 << unix.CAP_NET_RAW, (*subject).tcpdump},
}

// TestAcceptance attaches to machines of every kind, does what people attach for, and looks whether the machine
// is as it was. README.md shows its table.
func TestAcceptance(t *testing.T) {
	table := [][]string{{"machine", "root"}}
	for _, c := range cases {
		table[0] = append(table[0], c.title)
	}
	table[0] = append(table[0], "unchanged")
	complete := true
	for _, k := range kinds {
		for _, root := range k.roots {
			name := "t-" + k.kind + "-" + root
			row := []string{k.title, root}
			complete = t.Run(k.title+", "+root, func(t *testing.T) {
				s := newSubject(t, k.kind, name, root, k.ref)
				mounts, members := s.state(t)
				for _, c := range cases {
					mark := "–"
					if s.caps&c.needs == c.needs {
						mark = "yes"
					}
					if !t.Run(c.title, func(t *testing.T) { c.check(s, t) }) {
						mark = "NO"
					}
					row = append(row, mark)
				}
				mark := "yes"
				if !t.Run("unchanged", func(t *testing.T) { s.unchanged(t, mounts, members) }) {
					mark = "NO"
				}
				row = append(row, mark)
			}) && len(row) == len(table[0]) && complete
			table = append(table, row)
		}
	}
	text := markdown(table)
	t.Logf("\n%s", text)
	if readme := string(readFile(t, "../../README.md")); complete && !strings.Contains(readme, text) {
		t.Errorf("README.md has another table")
	}
}

// markdown formats a table.
func markdown(table [][]string) string {
	var b strings.Builder
	for i, row := range table {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
		}
	}
	return b.String()
}

// newSubject starts a machine, or takes one that runs.
func newSubject(t *testing.T, kind, name, root, ref string) *subject {
	t.Helper()
	s := &subject{slim: true}
	if kind == "" {
		s.leader, s.slim = leaderOf(t, ref), false
	} else {
		must(t, machineTool, "start", kind, name, root)
		t.Cleanup(func() { must(t, machineTool, "stop", kind, name) })
		pid, err := strconv.Atoi(must(t, machineTool, "leader", kind, name))
		if err != nil {
			t.Fatal(err)
		}
		s.leader = pid
	}
	s.ref = strings.NewReplacer("NAME", name, "LEADER", strconv.Itoa(s.leader)).Replace(ref)
	s.main = s.leader
	if s.slim && comm(t, s.leader) != "slim\n" { // --as-pid2
		child, err := strconv.Atoi(must(t, "pgrep", "--parent", strconv.Itoa(s.leader), "--exact", "slim"))
		if err != nil {
			t.Fatal(err)
		}
		s.main = child
	}
	status := string(readFile(t, fmt.Sprintf("/proc/%d/status", s.main)))
	ids := strings.Fields(field(t, status, "NSpid"))
	s.inside = ids[len(ids)-1]
	s.caps = capabilities(t, status)
	// Without CAP_DAC_OVERRIDE root cannot read what is another user's, in /proc as elsewhere.
	if s.caps&(1<<unix.CAP_DAC_OVERRIDE) == 0 {
		s.user = []string{"--user=" + strings.Fields(field(t, status, "Uid"))[0]}
	}
	return s
}

func comm(t *testing.T, pid int) string {
	t.Helper()
	return string(readFile(t, fmt.Sprintf("/proc/%d/comm", pid)))
}

func (s *subject) exitStatus(t *testing.T) {
	for _, c := range []struct {
		command []string
		want    int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 42"}, 42},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143},
		{[]string{"no-such-command"}, 127},
	} {
		if o := attachTo(t, s.by(append([]string{"--"}, c.command...)...)...); o.code != c.want {
			t.Errorf("%q: exit status %d, want %d\n%s", c.command, o.code, c.want, o.stderr)
		}
	}
}

func (s *subject) pipes(t *testing.T) {
	data := make([]byte, 1<<20+1)
	_, _ = rand.Read(data) // never fails
	o := attachWith(t, bytes.NewReader(data), s.by("sh", "-c", "cat; echo said >&2")...)
	if o.code != 0 || o.stdout != string(data) || o.stderr != "said\n" {
		t.Errorf("exit status %d, %d bytes for %d, stderr %q", o.code, len(o.stdout), len(data), o.stderr)
	}
}

func (s *subject) terminal(t *testing.T) {
	c := openConsole(t, s.by("sh", "-c", "tty; stty size; exit 3")...)
	c.expect("/dev/pts/")
	c.expect("24 80")
	if code := c.exit(); code != 3 {
		t.Errorf("exit status %d", code)
	}
}

// namespaces compares what the session sees with the leader's.
func (s *subject) namespaces(t *testing.T) {
	proc := fmt.Sprintf("/proc/%d", s.leader)
	list := []string{"cgroup", "ipc", "net", "pid", "time", "user", "uts"}
	var want strings.Builder
	for _, ns := range list {
		link, err := os.Readlink(proc + "/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		want.WriteString(link + "\n")
	}
	host := must(t, "nsenter", "--target="+strconv.Itoa(s.leader), "--uts", "hostname")
	want.WriteString(host + "\n" + comm(t, s.main))
	got := succeeds(t, s.by("sh", "-c", "for n in "+strings.Join(list, " ")+"; do readlink /proc/self/ns/$n; done; hostname; cat /proc/"+s.inside+"/comm")...)
	if got != want.String() {
		t.Errorf("got\n%swant\n%s", got, &want)
	}
}

// root compares the directory with the leader's root.
func (s *subject) root(t *testing.T) {
	list := "stat --format='%d %i %n' . usr usr/bin; ls"
	got := succeeds(t, s.by("sh", "-c", "cd /var/lib/cntr; "+list)...)
	want := must(t, "sh", "-c", fmt.Sprintf("cd /proc/%d/root/; ", s.leader)+list)
	if got != want+"\n" {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func (s *subject) gdb(t *testing.T) {
	o := attachTo(t, s.as("--", "gdb", "-p", s.inside, "-batch", "-ex", "bt")...)
	wants := []string{"in epoll_wait ", "in __libc_start_main"} // or what it is called by its debugging information
	if s.slim {
		wants = []string{`in wait_for_work \(server=0x.*\) at .*slim\.c:\d+`, `in serve \(.*\) at .*slim\.c:\d+`, `in main \(\) at .*slim\.c:\d+`}
	}
	for _, want := range wants {
		if !regexp.MustCompile(want).MatchString(o.stdout) {
			t.Errorf("no %q in the backtrace:\n%s%s", want, o.stdout, o.stderr)
		}
	}
}

func (s *subject) strace(t *testing.T) {
	o := attachTo(t, s.as("sh", "-c", `strace -o /dev/null -p `+s.inside+` 2>&1 >/dev/null | {
		read -r line; echo "$line"; pkill -INT -x strace; cat; }`)...)
	if !strings.Contains(o.stdout, "Process "+s.inside+" attached") || !strings.Contains(o.stdout, "detached") {
		t.Errorf("strace: %+v", o)
	}
}

func (s *subject) looks(t *testing.T) {
	name := strings.TrimSpace(comm(t, s.main))
	o := attachTo(t, s.as("sh", "-ec", "ps -o comm= -p "+s.inside+"; lsof -nP -a -p "+s.inside+" -d 0-999; ss -Htlnp; ss -Hxl")...)
	wants := []string{name + "\n"}
	if s.slim {
		wants = append(wants, `127\.0\.0\.1:8080 \(LISTEN\)`, `127.0.0.1:8080 .*"slim",pid=`+s.inside)
	} else {
		wants = append(wants, "/dev/null", "/run/systemd/private")
	}
	for _, want := range wants {
		if !regexp.MustCompile(want).MatchString(o.stdout) {
			t.Errorf("no %q in\n%s%s", want, o.stdout, o.stderr)
		}
	}
}

func (s *subject) tcpdump(t *testing.T) {
	const script = `tcpdump --immediate-mode -i lo -c 1 -w - 2>/tmp/said & until grep -q listening /tmp/said || ! kill -0 $! 2>/dev/null; do :; done
		curl -s http://127.0.0.1:8080/ --max-time 1; wait $!; code=$?; cat /tmp/said >&2; rm /tmp/said; exit $code`
	o := attachTo(t, s.by("sh", "-c", script)...)
	if s.caps&(1<<unix.CAP_NET_RAW) == 0 {
		if o.code == 0 || !strings.Contains(o.stderr, "permi") {
			t.Errorf("tcpdump without CAP_NET_RAW: %+v", o)
		}
		return
	}
	if !strings.HasPrefix(o.stdout, "\xd4\xc3\xb2\xa1") { // the magic number of a capture file
		t.Errorf("tcpdump: %+v", o)
	}
}

// state is what a session must leave as it was: the machine's mounts, and its processes.
func (s *subject) state(t *testing.T) (mounts string, members []string) {
	t.Helper()
	mounts = string(readFile(t, fmt.Sprintf("/proc/%d/mountinfo", s.leader)))
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", s.leader))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range glob(t, "/proc/[0-9]*/ns/mnt") {
		if its, err := os.Readlink(link); err == nil && its == own {
			members = append(members, link)
		}
	}
	return mounts, members
}

func (s *subject) unchanged(t *testing.T, mounts string, members []string) {
	r := start(t, s.by("sh", "-c", "echo ready; read end")...)
	if line := r.line(); line != "ready" {
		t.Fatalf("got %q", line)
	}
	if now, _ := s.state(t); now != mounts {
		t.Errorf("the machine's mounts were\n%sand are, with a session,\n%s", mounts, now)
	}
	_ = r.stdin.Close()
	r.exit(runTimeout)
	waitForNoScopes(t)
	now, left := s.state(t)
	if now != mounts {
		t.Errorf("the machine's mounts were\n%sand are\n%s", mounts, now)
	}
	if s.slim && !slices.Equal(left, members) {
		t.Errorf("the machine's processes were %q and are %q", members, left)
	}
	// What has ended is seen until its parent has taken note, which may be later than systemd.
	for deadline := time.Now().Add(runTimeout); ; {
		c := look(t)
		if c.processes == 0 && c.mounts == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sessions left %+v", c)
		}
	}
}
