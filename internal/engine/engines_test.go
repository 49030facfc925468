//go:build integration

package engine

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// machineTool starts machines, see internal/testhost.
const machineTool = "/usr/lib/testhost/machine"

// startMachine starts a machine with a slim root and returns its leader, as its manager tells it.
func startMachine(t *testing.T, kind, name string) int {
	t.Helper()
	must(t, machineTool, "start", kind, name, "slim")
	t.Cleanup(func() { must(t, machineTool, "stop", kind, name) })
	pid, err := strconv.Atoi(must(t, machineTool, "leader", kind, name))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// asAlice runs a command as a user with a session of her own.
func asAlice(args ...string) []string {
	return append([]string{"runuser", "-u", "alice", "--", "env", "--chdir=/home/alice", "XDG_RUNTIME_DIR=/run/user/1000"}, args...)
}

func byKind(t *testing.T, kind string) machine.Resolver {
	t.Helper()
	for _, r := range Engines() {
		if r.Kind() == kind {
			return r
		}
	}
	t.Fatalf("no engine %q", kind)
	return nil
}

// check resolves a name, and compares what is found with what it should be.
func check(t *testing.T, r machine.Resolver, name, want string, leader int) {
	t.Helper()
	m, err := r.Resolve(bounded(t), name)
	if err != nil {
		t.Errorf("%s:%s: %v", r.Kind(), name, err)
		return
	}
	defer m.Close()
	if m.Ref() != want || m.Leader.PID != leader || !m.Leader.Alive() || m.Class != "container" {
		t.Errorf("%s:%s is %+v, leader %d, want %s, leader %d", r.Kind(), name, *m, m.Leader.PID, want, leader)
	}
}

// refused resolves a name that it should not.
func refused(t *testing.T, r machine.Resolver, name string, code fail.Code, hint string) {
	t.Helper()
	m, err := r.Resolve(bounded(t), name)
	if err == nil {
		_ = m.Close()
	}
	if !fail.Is(err, code) || !strings.Contains(fail.From(err).Hint, hint) {
		t.Errorf("%s:%.30s: %v (hint: %q), want %s and %q", r.Kind(), name, err, fail.From(err).Hint, code, hint)
	}
}

// listed looks for a machine in a resolver's list.
func listed(t *testing.T, r machine.Resolver, name string, leader int) {
	t.Helper()
	list, err := r.List(bounded(t))
	if err != nil || !slices.ContainsFunc(list, func(i machine.Info) bool {
		return i.Kind == r.Kind() && i.Name == name && i.Leader == leader && i.Class == "container"
	}) {
		t.Errorf("%s is not in %+v, %v", name, list, err)
	}
}

var badNames = []string{"none", "..", "a?all=1", "a b", "a%2fb", strings.Repeat("x", 4096), "a@nobody-such", "@", "ü"}

func TestDocker(t *testing.T) {
	leader := startMachine(t, "docker", "t-docker")
	docker := byKind(t, "docker")
	id := must(t, "docker", "inspect", "--format={{.Id}}", "t-docker")
	for _, name := range []string{"t-docker", id, id[:12]} {
		check(t, docker, name, "docker:t-docker", leader)
	}
	listed(t, docker, "t-docker", leader)
	for _, name := range badNames {
		refused(t, docker, name, fail.NoSuchMachine, "")
	}
	// Two ids of 17 begin alike.
	ids := map[byte]bool{}
	for range 17 {
		other := must(t, "docker", "create", "slim", "/usr/bin/slim")
		t.Cleanup(func() { must(t, "docker", "rm", other) })
		if ids[other[0]] {
			refused(t, docker, other[:1], fail.AmbiguousMachine, "docker ps")
			break
		}
		ids[other[0]] = true
	}
	must(t, "docker", "pause", "t-docker")
	check(t, docker, "t-docker", "docker:t-docker", leader)
	must(t, "docker", "unpause", "t-docker")
	must(t, "docker", "kill", "t-docker")
	refused(t, docker, "t-docker", fail.NotRunning, "docker start t-docker")
}

// A daemon that hangs delays nobody, is named, and is not needed by who knows the id.
func TestDockerHangs(t *testing.T) {
	leader := startMachine(t, "docker", "t-docker")
	id := must(t, "docker", "inspect", "--format={{.Id}}", "t-docker")
	daemon := mainPIDOf(t, "docker.service")
	if err := unix.Kill(daemon, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(daemon, unix.SIGCONT) }()
	docker := byKind(t, "docker")
	check(t, docker, id[:12], "docker:"+id[:12], leader)
	if m, err := docker.Resolve(bounded(t), "t-docker"); err == nil || fail.From(err).Code != fail.Unresponsive {
		t.Errorf("%v, %v", m, err)
	}
	o := run(t, "cntr-attach", "-v", "deb", "true")
	if o.code != 0 || !strings.HasPrefix(o.stderr, "cntr-attach: docker did not answer within 0.5 s\ncntr-attach: exit status 0, ") {
		t.Errorf("%+v", o)
	}
	o = run(t, "cntr-attach", "dbe", "true")
	if o.code != 125 || !strings.Contains(o.stderr, "docker: ") && !strings.Contains(o.stderr, "docker did not answer within 2 s") ||
		!strings.Contains(o.stderr, "did you mean deb") {
		t.Errorf("%+v", o)
	}
}

// lyingDaemon is Docker's API, as a user may make it up: one container is a process of the host's, one has a name that is
// none, and with the argument "hang" nothing is ever answered.
const lyingDaemon = `
import json, os, socket, sys
path = "/run/user/1000/docker.sock"
if os.path.exists(path):
    os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(64)
print("ready", flush=True)
held = []
while True:
    connection = server.accept()[0]
    held.append(connection)
    if sys.argv[1] == "hang":
        continue
    request = connection.recv(65536).decode().split()[1]
    if request == "/containers/json":
        answer = [{"Id": c} for c in ("host", "evil", "gone")]
    else:
        name = request.split("/")[2]
        said = {"host": ("/host", "running", 1), "evil": ("/ev\0il\n\x1b[2J", "running", os.getpid()),
                "gone": ("/gone", "\x1b[2Jgone", 0)}[name]
        answer = {"Id": name, "Name": said[0], "State": {"Status": said[1], "Running": said[2] > 0, "Pid": said[2]}}
    body = json.dumps(answer).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    connection.close()
`

// lie runs the made-up daemon as alice until the test's end.
func lie(t *testing.T, how string) {
	t.Helper()
	must(t, "loginctl", "enable-linger", "alice")
	must(t, "systemctl", "start", "user@1000.service")
	const program = "/home/alice/dockerd" // which is the process's name, then
	must(t, "install", "--owner=alice", "/usr/bin/python3", program)
	cmd := exec.Command("runuser", "-u", "alice", "--", program, "-c", lyingDaemon, how)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		must(t, "pkill", "--exact", "--uid=alice", "dockerd")
		_ = cmd.Wait()
		must(t, "rm", "-f", program, "/run/user/1000/docker.sock")
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

// What a user's daemon says is a claim, and shown only if it can be.
func TestUsersCannotLieAboutDocker(t *testing.T) {
	lie(t, "lie")
	docker := byKind(t, "docker")
	refused(t, docker, "host@alice", fail.NotAContainer, "")
	refused(t, docker, "host", fail.NoSuchMachine, "")
	for _, name := range []string{"evil@alice", "gone@alice"} {
		m, err := docker.Resolve(bounded(t), name)
		if err == nil {
			_ = m.Close()
		}
		if err == nil || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%s: %q", name, err)
		}
	}
	if list, err := docker.List(bounded(t)); len(list) > 0 || err == nil {
		t.Errorf("listed are %v, %v", list, err)
	}
}

// A user whose daemon hangs hides nobody else's containers.
func TestHangingDaemonOfAUserHidesNothing(t *testing.T) {
	leader := startMachine(t, "docker", "t-docker")
	lie(t, "hang")
	docker := byKind(t, "docker")
	begin := time.Now()
	list, err := docker.List(bounded(t))
	if len(list) != 1 || list[0].Name != "t-docker" || list[0].Leader != leader || err == nil || !strings.Contains(err.Error(), "user 1000") {
		t.Errorf("listed are %+v, %v", list, err)
	}
	check(t, docker, "t-docker", "docker:t-docker", leader)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A daemon that does not run is not started by asking for a machine.
func TestDaemonsAreNotStarted(t *testing.T) {
	must(t, "systemctl", "stop", "docker.service", "incus.service")
	must(t, "systemctl", "start", "docker.socket", "incus.socket")
	t.Cleanup(func() { must(t, "systemctl", "stop", "docker.socket", "incus.socket") })
	for _, kind := range []string{"docker", "incus", "lxd"} {
		refused(t, byKind(t, kind), "web", fail.NoSuchMachine, "start it: ")
		if list, err := byKind(t, kind).List(bounded(t)); len(list) > 0 || err != nil {
			t.Errorf("%s: %v, %v", kind, list, err)
		}
	}
	if o := run(t, "cntr-attach", "web", "true"); o.code != 125 || strings.Contains(o.stderr, "docker") {
		t.Errorf("%+v", o)
	}
	for _, unit := range []string{"docker.service", "incus.service"} {
		if state := run(t, "systemctl", "is-active", unit).stdout; state != "inactive\n" {
			t.Errorf("%s is %s", unit, state)
		}
	}
}

func TestPodman(t *testing.T) {
	leader := startMachine(t, "podman", "t-podman")
	hers := startMachine(t, "podman-user", "t-hers")
	podman := byKind(t, "podman")
	id := must(t, "podman", "inspect", "--format={{.Id}}", "t-podman")
	for _, name := range []string{"t-podman", id, id[:12], id[:2]} {
		check(t, podman, name, "podman:t-podman", leader)
	}
	check(t, podman, "t-hers@alice", "podman:t-hers@alice", hers)
	hersID := must(t, asAlice("podman", "inspect", "--format={{.Id}}", "t-hers")...)
	check(t, podman, hersID[:12]+"@alice", "podman:t-hers@alice", hers)
	refused(t, podman, "t-hers", fail.NoSuchMachine, "did you mean podman:t-hers@alice?")
	refused(t, podman, hersID, fail.NoSuchMachine, "")
	refused(t, podman, "t-podman@alice", fail.NoSuchMachine, "")
	for _, name := range append(badNames, "@alice") {
		refused(t, podman, name, fail.NoSuchMachine, "")
	}
	listed(t, podman, "t-podman", leader)
	listed(t, podman, "t-hers@alice", hers)
	// What runs beside a container's own process has a conmon, too.
	must(t, "podman", "exec", "--detach", "t-podman", "/usr/bin/slim")
	check(t, podman, "t-podman", "podman:t-podman", leader)
}

// claim has a process say that it is the conmon of a container whose leader is its child. The script is run
// as a user, with $0 to become the conmon; it returns when that runs.
func claim(t *testing.T, user, name, script string) {
	t.Helper()
	fake := filepath.Join("/home/alice", "conmon")
	unit := "test-claim-" + name + ".service"
	id := strings.Repeat("ab12", 16)
	// bash as conmon: its arguments are those of a conmon, and it has the child.
	must(t, "install", "--owner=alice", "/usr/bin/bash", fake)
	t.Cleanup(func() { _ = os.Remove(fake) })
	must(t, "systemd-run", "--quiet", "--collect", "--unit="+unit, "--property=User="+user, "--property=Type=exec", fake, "-c", script,
		"-c", id, "-u", id, "-n", name, "--exit-command", "podman")
	t.Cleanup(func() { must(t, "systemctl", "stop", unit) })
	for deadline := time.Now().Add(patience); ; {
		if o := run(t, "pgrep", "--parent", strconv.Itoa(mainPIDOf(t, unit))); o.code == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it has no child")
		}
	}
}

// A user can give away processes in her own user namespaces only, and no container of hers is called like
// root's.
func TestUsersCannotLieAboutPodman(t *testing.T) {
	podman := byKind(t, "podman")
	for _, c := range []struct {
		name, script string
		code         fail.Code
	}{
		{"t-host", "sleep infinity & wait", fail.NotAContainer},                // a process of the host
		{"t-mine", "unshare -Urm --fork sleep infinity & wait", fail.Code("")}, // her own, which she may
	} {
		t.Run(c.name, func(t *testing.T) {
			claim(t, "alice", c.name, "exec 3< <(sleep infinity); "+c.script)
			refused(t, podman, c.name, fail.NoSuchMachine, "")
			m, err := podman.Resolve(bounded(t), c.name+"@alice")
			if err == nil {
				owner, second := machine.UserNamespaceOwner(m.Leader.PID)
				if second != nil || owner != 1000 {
					t.Errorf("it is process %d in a user namespace of %d, %v", m.Leader.PID, owner, second)
				}
				_ = m.Close()
			}
			if c.code != "" && !fail.Is(err, c.code) {
				t.Errorf("%v, want %s", err, c.code)
			}
		})
	}
	// A program of hers that root runs is not Podman's either.
	claim(t, "root", "t-roots", "unshare -m --fork sleep infinity & wait")
	if path := must(t, "readlink", "/proc/"+strconv.Itoa(mainPIDOf(t, "test-claim-t-roots.service"))+"/exe"); path != "/home/alice/conmon" {
		t.Fatalf("it is %s", path)
	}
	refused(t, podman, "t-roots", fail.NoSuchMachine, "")
}

func TestIncus(t *testing.T) {
	leader := startMachine(t, "incus", "t-incus")
	incus := byKind(t, "incus")
	check(t, incus, "t-incus", "incus:t-incus", leader)
	check(t, incus, "t-incus@default", "incus:t-incus", leader)
	listed(t, incus, "t-incus", leader)
	for _, name := range append(badNames, "t-incus@", "t-inc", "t-incus@none", "t-incus/state", "t-incus@blue&project=default") {
		if name != "t-incus@" {
			refused(t, incus, name, fail.NoSuchMachine, "")
		}
	}
	must(t, "incus", "project", "create", "--quiet", "blue", "--config=features.images=false", "--config=features.profiles=false")
	t.Cleanup(func() { must(t, "incus", "project", "delete", "blue") })
	must(t, "incus", "launch", "--quiet", "--project=blue", "slim", "t-blue", "--config=raw.lxc=lxc.init.cmd=/usr/bin/slim")
	t.Cleanup(func() { must(t, "incus", "delete", "--force", "--project=blue", "t-blue") })
	refused(t, incus, "t-blue", fail.NoSuchMachine, "--all-projects")
	m, err := incus.Resolve(bounded(t), "t-blue@blue")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	listed(t, incus, "t-blue@blue", m.Leader.PID)
	must(t, "incus", "stop", "--force", "--project=blue", "t-blue")
	refused(t, incus, "t-blue@blue", fail.NotRunning, "incus start t-blue --project blue")
}

// scoped runs a container with runc, or crun, in a control group that is called as an engine would call it.
func scoped(t *testing.T, program, slice, prefix, id string) int {
	t.Helper()
	bundle := t.TempDir()
	must(t, "sh", "-euc", `cd "$1"; mkdir rootfs; cp -a /var/lib/machines/slim/. rootfs; runc spec
		sed -i -e 's|"terminal": true|"terminal": false|' -e 's|"sh"|"/usr/bin/slim"|' \
			-e "s|\"linux\": {|\"linux\": { \"cgroupsPath\": \"$2:$3:$4\",|" config.json`, "sh", bundle, slice, prefix, id)
	must(t, "sh", "-euc", `"$1" --systemd-cgroup run --detach --bundle "$2" "$3" </dev/null >/dev/null 2>&1`, "sh", program, bundle, prefix+id[:8])
	t.Cleanup(func() { must(t, program, "--systemd-cgroup", "delete", "--force", prefix+id[:8]) })
	pid, err := strconv.Atoi(must(t, "sh", "-c", program+" state "+prefix+id[:8]+` | sed -n 's/.*"pid": \([0-9]*\).*/\1/p'`))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestContainersByTheirScopes(t *testing.T) {
	pod := "kubepods-burstable-pod" + strings.ReplaceAll(podUID, "-", "_") + ".slice"
	first, second, third := strings.Repeat("ab12", 16), strings.Repeat("cd34", 16), strings.Repeat("ab56", 16)
	app := scoped(t, "runc", pod, "cri-containerd", first)
	standalone := scoped(t, "runc", "system.slice", "nerdctl", second)
	containerd, crio, k8s := byKind(t, "containerd"), byKind(t, "crio"), byKind(t, "k8s")
	check(t, containerd, "ab", "containerd:"+first[:12], app)
	check(t, containerd, second, "containerd:"+second[:12], standalone)
	check(t, k8s, first, "k8s:"+first[:12], app)
	check(t, k8s, podUID, "k8s:"+first[:12], app)
	check(t, k8s, podUID[:8], "k8s:"+first[:12], app)
	refused(t, k8s, second, fail.NoSuchMachine, "")
	listed(t, k8s, first[:12], app)
	listed(t, containerd, second[:12], standalone)

	other := scoped(t, "crun", pod, "crio", third)
	check(t, crio, third[:4], "crio:"+third[:12], other)
	refused(t, k8s, "ab", fail.AmbiguousMachine, "k8s:"+third[:12])
	refused(t, k8s, podUID, fail.AmbiguousMachine, "k8s:"+first[:12])
	for _, name := range badNames {
		refused(t, k8s, name, fail.NoSuchMachine, "")
	}
	// All of it through the programs: the id alone is known to two, as one machine.
	if got := must(t, "cntr-attach", first[:12], "cat", "/proc/1/comm"); got != "slim" {
		t.Errorf("process 1 is %q", got)
	}
	// A control group that somebody makes in one of their own says nothing.
	fake := strings.Repeat("ef78", 16)
	must(t, "systemd-run", "--quiet", "--collect", "--unit=test-delegated", "--property=Delegate=yes", "--property=User=alice",
		"--property=Type=exec", "--expand-environment=no", "sh", "-euc", `group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
			mkdir -p "$group/kubepods.slice/cri-containerd-$0.scope"; echo $$ >"$group/kubepods.slice/cri-containerd-$0.scope/cgroup.procs"
			exec sleep infinity`, fake)
	t.Cleanup(func() { must(t, "systemctl", "stop", "test-delegated") })
	for deadline := time.Now().Add(patience); !strings.Contains(must(t, "cat", fmt.Sprintf("/proc/%d/cgroup", mainPIDOf(t, "test-delegated"))), fake); {
		if time.Now().After(deadline) {
			t.Fatal("it has no control group of its own")
		}
	}
	for _, r := range []machine.Resolver{containerd, k8s} {
		refused(t, r, fake, fail.NoSuchMachine, "")
	}
}

func TestServiceFromADiskImage(t *testing.T) {
	must(t, machineTool, "start", "nspawn-image", "t-image", "slim") // makes the image
	must(t, machineTool, "stop", "nspawn-image", "t-image")
	pid := startService(t, "test-image.service", []string{"/usr/bin/slim"}, "RootImage=/var/lib/testhost/trees/slim.img",
		"RootImageOptions=root:ro", "MountAPIVFS=yes", "PrivateNetwork=yes", "PrivateIPC=yes")
	m, err := newServices(t).Resolve(bounded(t), "test-image")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Leader.PID != pid {
		t.Errorf("process %d, want %d", m.Leader.PID, pid)
	}
	trace := must(t, "cntr-attach", "unit:test-image", "--", "gdb", "-p", strconv.Itoa(pid), "-batch", "-ex", "bt")
	if !strings.Contains(trace, "wait_for_work (server=") {
		t.Errorf("gdb: %s", trace)
	}
	if got := must(t, "cntr-attach", "unit:test-image", "ls", "/var/lib/cntr/usr/bin"); got != "slim" {
		t.Errorf("its programs are %q", got)
	}
}

func TestEnginesLeakNoDescriptors(t *testing.T) {
	startMachine(t, "docker", "t-docker")
	startMachine(t, "podman", "t-podman")
	leaksNothing(t, 20, func() {
		for _, r := range Engines() {
			for _, name := range []string{"t-docker", "t-podman", "none"} {
				if m, err := r.Resolve(bounded(t), name); err == nil {
					_ = m.Close()
				}
			}
			if _, err := r.List(bounded(t)); err != nil {
				t.Error(err)
			}
		}
	})
}
