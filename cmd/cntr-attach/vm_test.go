//go:build integration && vm

// The tests in files with the tag "vm" want what a container may not have: Debian's kernel with AppArmor, BPF programs on its
// functions, and all controllers of control groups. They run in the virtual machine of internal/testhost, with make test-vm.

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// runTimeout bounds what a test runs, on a processor that may be emulated.
const runTimeout = 5 * time.Minute

func TestKernelHasTheShield(t *testing.T) {
	if !shielded(t) {
		t.Fatal("the tests of this virtual machine are about the shield")
	}
}

// Where the shield keeps strangers away, the kernel is told with the first directory that none need be opened, and walks by itself from
// then on.
func TestShieldedSessionsOpenNoDirectories(t *testing.T) {
	const tracing = "/sys/kernel/tracing/instances/cntr-opendir"
	if _, err := os.Stat(filepath.Dir(tracing)); err != nil {
		must(t, "mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")
	}
	// Names of processes are of no use here, and are got by patching the scheduler, which an emulated processor may trip over. An instance
	// takes this over from the first.
	must(t, "sh", "-c", "echo 0 >/sys/kernel/tracing/options/record-cmd")
	must(t, "mkdir", tracing)
	t.Cleanup(func() { must(t, "rmdir", tracing) })
	event := tracing + "/events/fuse/fuse_request_send/"
	set := func(name, value string) {
		t.Helper()
		if err := os.WriteFile(event+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	const openDir = 27 // FUSE_OPENDIR
	set("filter", fmt.Sprint("opcode == ", openDir))
	for _, machine := range []string{booted, userns} {
		set("enable", "1")
		out := succeeds(t, machine, "sh", "-c", "for i in 1 2 3; do ls -R /usr/lib/systemd | wc -l; done")
		set("enable", "0")
		lines := strings.Fields(out)
		if len(lines) != 3 || lines[0] != lines[1] || lines[1] != lines[2] || len(lines[0]) < 3 {
			t.Errorf("%s: /usr/lib/systemd has %q lines", machine, lines)
		}
		trace := readFile(t, tracing+"/trace")
		// Some may be under way when the first is answered.
		if n := strings.Count(string(trace), "fuse_request_send:"); n == 0 || n > 4 {
			t.Errorf("%s: %d OPENDIR, want the one that says that there need be no more:\n%s", machine, n, trace)
		}
		if err := os.WriteFile(tracing+"/trace", nil, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// container starts the slim machine as a container of LXC, with the lines of configuration given, and returns its leader.
func container(t *testing.T, name string, config ...string) int {
	t.Helper()
	dir := "/var/lib/lxc/" + name
	must(t, "mkdir", "-p", dir)
	t.Cleanup(func() {
		runCommand(t, nil, "lxc-stop", "--name="+name, "--kill")
		must(t, "rm", "-rf", dir)
	})
	must(t, "cp", "-a", "/var/lib/machines/slim", dir+"/rootfs")
	lines := append([]string{
		"lxc.uts.name = " + name, "lxc.rootfs.path = dir:" + dir + "/rootfs", "lxc.net.0.type = empty", "lxc.init.cmd = /usr/bin/slim",
		"lxc.mount.auto = proc:rw sys:ro",
	}, config...)
	if err := os.WriteFile(dir+"/config", []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "lxc-start", "--name="+name, "--logfile="+dir+"/log")
	must(t, "lxc-wait", "--name="+name, "--state=RUNNING", "--timeout=60")
	pid, err := strconv.Atoi(must(t, "lxc-info", "--name="+name, "--pid", "--no-humanize"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func label(t *testing.T, pid string) string {
	t.Helper()
	text, _, _ := strings.Cut(string(readFile(t, "/proc/"+pid+"/attr/apparmor/current")), " (")
	return strings.TrimSuffix(text, "\n")
}

// A command has the AppArmor label of the machine, so that it may do what the machine may, or with --label=off the caller's.
func TestCommandHasTheMachinesAppArmorLabel(t *testing.T) {
	for _, test := range []struct {
		name, label string // a part of it
		mapped      bool
		config      []string
	}{
		// Debian's defaults, /etc/lxc/default.conf: a profile for each container, stacked with one in a namespace of its own.
		{"lxc-generated", "lxc-", false, []string{"lxc.apparmor.profile = generated", "lxc.apparmor.allow_nesting = 1"}},
		{"lxc-default", "lxc-container-default", false, []string{"lxc.apparmor.profile = lxc-container-default-cgns"}},
		{"lxc-mapped", "lxc-container-default", true, []string{
			"lxc.idmap = u 0 100000 65536", "lxc.idmap = g 0 100000 65536", "lxc.apparmor.profile = lxc-container-default-cgns",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.mapped {
				must(t, "chmod", "755", "/var/lib/lxc") // its root may pass
			}
			leader := container(t, test.name, test.config...)
			want := label(t, strconv.Itoa(leader))
			if !strings.Contains(want, test.label) {
				t.Fatalf("the machine's label is %q", want)
			}
			ref := "lxc:" + test.name
			// Who is in a policy namespace, as with a generated profile, sees labels from there: of its own, only what is in it.
			const show = "cut -d' ' -f1 /proc/1/attr/apparmor/current /proc/self/attr/apparmor/current"
			for _, mode := range []string{"--quiet", "--direct", "--strict"} {
				its, own, _ := strings.Cut(succeeds(t, mode, ref, "sh", "-c", show), "\n")
				if own != its+"\n" || its != want && !strings.HasSuffix(want, ":"+its) {
					t.Errorf("%s: the command's label is %q, the machine's %q and %q", mode, own, its, want)
				}
				its, own, _ = strings.Cut(succeeds(t, mode, "--label=off", ref, "sh", "-c", show), "\n")
				if own != label(t, "self")+"\n" || its != want {
					t.Errorf("%s --label=off: the command's label is %q, the machine's %q", mode, own, its)
				}
			}
			// What the profiles of LXC refuse root: here it is the label that does.
			const forbidden = "echo h 2>/dev/null >/proc/sysrq-trigger && echo done"
			if o := attachTo(t, ref, "sh", "-c", forbidden); o.code == 0 {
				t.Errorf("with the machine's label %q: %+v", want, o)
			}
			if o := attachTo(t, "--label=off", ref, "sh", "-c", forbidden); !test.mapped && o.code != 0 {
				t.Errorf("with --label=off: %+v", o)
			}
			if out := succeeds(t, ref, "--", "gdb", "-p", "1", "-batch", "-ex", "bt"); !strings.Contains(out, "in wait_for_work (") {
				t.Errorf("gdb under %q: %s", want, out)
			}
			if out := succeeds(t, ref, "sh", "-c", "ps -o comm= -p 1; lsof -p 1 | grep -c /usr/bin/slim"); out != "slim\n1\n" {
				t.Errorf("ps and lsof under %q: %q", want, out)
			}
		})
	}
	for _, machine := range machines {
		if got := succeeds(t, machine, "cat", "/proc/self/attr/apparmor/current"); got != "unconfined\n" {
			t.Errorf("%s: the command's label is %q", machine, got)
		}
	}
}

// Docker's profile holds for a command, too, and the acceptance suite passes with it.
func TestCommandHasDockersAppArmorProfile(t *testing.T) {
	const name = "t-docker-label"
	t.Cleanup(func() { must(t, "systemctl", "stop", "docker.service", "docker.socket", "containerd.service") })
	s := newSubject(t, "docker", name, "slim", "docker:NAME")
	const own = "/proc/self/attr/apparmor/current"
	for _, mode := range []string{"--quiet", "--direct", "--strict"} {
		if got := succeeds(t, mode, s.ref, "cat", own, "/proc/1/attr/apparmor/current"); got != "docker-default (enforce)\ndocker-default (enforce)\n" {
			t.Errorf("%s: the labels of the command and the machine are %q", mode, got)
		}
		if got := succeeds(t, mode, "--label=off", s.ref, "cat", own); got != "unconfined\n" {
			t.Errorf("%s --label=off: the command's label is %q", mode, got)
		}
	}
	for _, c := range cases {
		t.Run(c.title, func(t *testing.T) { c.check(s, t) })
	}
	// Where Docker masks nothing, it is the profile that keeps root from doing harm.
	must(t, "docker", "run", "--detach", "--network=none", "--name="+name+"-unmasked", "--security-opt=systempaths=unconfined", "slim", "/usr/bin/slim")
	t.Cleanup(func() { must(t, "docker", "rm", "--force", name+"-unmasked") })
	const forbidden = "echo h >/proc/sysrq-trigger"
	if o := attachTo(t, s.ref+"-unmasked", "sh", "-c", forbidden); o.code == 0 || !strings.Contains(o.stderr, "Permission denied") {
		t.Errorf("with the machine's label: %+v", o)
	}
	succeeds(t, "--label=off", s.ref+"-unmasked", "sh", "-c", forbidden)
}

// bpftrace of the host looks at the machine's processes, with the types of the kernel that the machine's /sys has, and the tracepoints
// of a tracefs that is mounted in the session alone. README.md says so.
func TestBPFtraceInSession(t *testing.T) {
	must(t, "systemd-run", "--quiet", "--machine=deb", "--unit=t-ticking", "sh", "-c", "while :; do sleep 0.1; done")
	t.Cleanup(func() { must(t, "systemctl", "--machine=deb", "stop", "t-ticking.service") })
	const libc = "/var/lib/cntr/usr/lib/x86_64-linux-gnu/libc.so.6"
	program := `tracepoint:sched:sched_process_exec /comm == "sleep"/ { @exec = 1; } ` +
		`uprobe:` + libc + `:clock_nanosleep /comm == "sleep"/ { @call = 1; } ` +
		`kprobe:hrtimer_nanosleep /comm == "sleep" && ((struct task_struct *)curtask)->tgid > 1/ { @kernel = 1; } ` +
		`interval:ms:100 /@exec && @call && @kernel/ { exit(); } interval:s:60 { exit(); }`
	out := succeeds(t, booted, "sh", "-c", `mount -t tracefs tracefs /sys/kernel/tracing && exec bpftrace -e "$1"`, "sh", program)
	for _, want := range []string{"@exec: 1", "@call: 1", "@kernel: 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q: %s", want, out)
		}
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/sys/kernel/tracing/events", leaderOf(t, booted))); err == nil {
		t.Error("the machine sees the session's tracefs")
	}
	// Without CAP_SYS_ADMIN in the host's user namespace there are no BPF programs.
	if o := attachTo(t, userns, "bpftrace", "-e", "BEGIN { exit(); }"); o.code == 0 {
		t.Errorf("in a machine with a user namespace: %+v", o)
	}
}

// A machine whose /proc takes the label and does nothing with it (CVE-2019-16884) does not keep a command from having it.
func TestFakeProcDoesNotSwallowTheLabel(t *testing.T) {
	const name = "lxc-container-default-cgns"
	machine := mountedMachine(t, `mount -t tmpfs none "$1/proc"
		for p in self thread-self; do mkdir -p "$1/proc/$p/attr/apparmor"; echo `+name+` >"$1/proc/$p/attr/apparmor/current"; done
		for p in self thread-self; do echo >"$1/proc/$p/attr/apparmor/exec"; echo >"$1/proc/$p/attr/exec"; done
		echo exec `+name+` >/proc/self/attr/apparmor/exec`)
	if got := label(t, strings.TrimPrefix(machine, "pid:")); got != name {
		t.Fatalf("the machine's label is %q", got)
	}
	for _, mode := range []string{"--quiet", "--direct"} {
		if got := succeeds(t, mode, machine, "cat", "/proc/self/attr/apparmor/current"); got != name+" (enforce)\n" {
			t.Errorf("%s: the command's label is %q", mode, got)
		}
	}
}

// cost runs a command in a session and returns what the session cost, as the journal has it.
func cost(t *testing.T, args ...string) map[string]float64 {
	t.Helper()
	o := attachTo(t, append([]string{"-v"}, args...)...)
	if o.code != 0 {
		t.Fatalf("%q: %+v", args, o)
	}
	must(t, "journalctl", "--sync")
	var entry map[string]any
	out := must(t, "journalctl", "--output=json", "--lines=1", "MESSAGE_ID=5d2d4b1ad1c9459f9fb2b2f9f5b1be02")
	if err := json.Unmarshal([]byte(out), &entry); err != nil {
		t.Fatal(err)
	}
	told := map[string]float64{}
	for _, name := range []string{"MEMORY_PEAK", "IO_METRIC_READ_BYTES", "IO_METRIC_WRITE_BYTES", "CPU_USAGE_NSEC"} {
		text, _ := entry[name].(string)
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%s is %q in the journal: %v\n%s", name, text, err, o.stderr)
		}
		told[name] = n
	}
	for _, what := range []string{"memory peak", "read", "written"} {
		if !strings.Contains(o.stderr, what) {
			t.Errorf("-v tells nothing of %s: %s", what, o.stderr)
		}
	}
	return told
}

const mib = 1 << 20

// What is told of a session's memory and disks is what a known load has used.
func TestMemoryAndDisksAreAccounted(t *testing.T) {
	near := func(what string, got, want, tolerance float64) {
		t.Helper()
		if math.Abs(got-want) > tolerance {
			t.Errorf("%s: %.1f MiB, want %.1f", what, got/mib, want/mib)
		}
	}
	const memory = "import sys; b = bytearray(int(sys.argv[1]) << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"
	cost(t, userns, "python3", "-c", memory, "1") // who reads a program from the disk pays for the page cache
	small := cost(t, userns, "python3", "-c", memory, "1")
	large := cost(t, userns, "python3", "-c", memory, "129")
	near("memory", large["MEMORY_PEAK"]-small["MEMORY_PEAK"], 128*mib, 8*mib)

	file := filepath.Join("/var/tmp", "cntr-load")
	t.Cleanup(func() { must(t, "rm", "-f", file) })
	written := cost(t, "--writable", booted, "dd", "if=/dev/zero", "of="+file, "bs=1M", "count=48", "conv=fsync", "status=none")
	near("written", written["IO_METRIC_WRITE_BYTES"], 48*mib, 4*mib)
	must(t, "sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
	read := cost(t, booted, "dd", "if="+file, "of=/dev/null", "bs=1M", "status=none")
	near("read", read["IO_METRIC_READ_BYTES"], 48*mib, 16*mib) // and the programs
}

// Limits hold for all of a session.
func TestLimitsHold(t *testing.T) {
	o := attachTo(t, "-p", "MemoryMax=64M", "-p", "MemorySwapMax=0", userns, "python3", "-c", "b = bytearray(256 << 20)")
	if o.code != 137 && o.code != 1 { // killed, or told
		t.Errorf("MemoryMax: %+v", o)
	}
	if o := attachTo(t, "-p", "MemoryMax=512M", userns, "python3", "-c", "b = bytearray(128 << 20)"); o.code != 0 {
		t.Errorf("MemoryMax that is enough: %+v", o)
	}
	const many = `i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; kill $(jobs -p); echo all`
	if o := attachTo(t, "-p", "TasksMax=60", userns, "sh", "-c", many); o.code != 2 || !strings.Contains(o.stderr, "Cannot fork") {
		t.Errorf("TasksMax: %+v", o)
	}
	// With nothing left, the session itself goes on.
	const full = `
import os, signal
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    pass
files = 0
for where, _, names in os.walk("/usr/share"):
    for name in names[:3]:
        path = os.path.join(where, name)
        if os.path.isfile(path):
            open(path, "rb").read(1)
            files += 1
for pid in children:
    os.kill(pid, signal.SIGKILL)
print(len(children) > 3, files > 100)
`
	for range 3 {
		if o := attachTo(t, "-p", "TasksMax=60", userns, "python3", "-c", full); o.code != 0 || o.stdout != "True True\n" {
			t.Errorf("work without a task left: %+v", o)
		}
	}
	if o := attachTo(t, "-p", "TasksMax=5", userns, "true"); o.code != 125 || !strings.Contains(o.stderr, "TasksMax=") {
		t.Errorf("TasksMax too low: %+v", o)
	}
	// All sessions together: nothing can be started any more.
	must(t, "systemctl", "set-property", "--runtime", "cntr.slice", "TasksMax=1")
	defer must(t, "systemctl", "revert", "cntr.slice")
	if o := attachTo(t, userns, "true"); o.code != 125 || !strings.Contains(o.stderr, "TasksMax=") {
		t.Errorf("TasksMax of the slice: %+v", o)
	}
	must(t, "systemctl", "set-property", "--runtime", "cntr.slice", "TasksMax=infinity")
	if o := attachTo(t, userns, "sh", "-c", many); !strings.Contains(o.stdout, "all") {
		t.Errorf("without TasksMax: %+v", o)
	}
	// A quota on all sessions together is the slice's.
	r, scope := sleeper(t, "-p", "IOWriteBandwidthMax=/ 1M", "-p", "CPUQuota=50%", booted)
	defer func() { _ = r.cmd.Process.Kill() }()
	group := "/sys/fs/cgroup" + must(t, "systemctl", "show", "--property=ControlGroup", "--value", scope)
	if got := string(readFile(t, group+"/cpu.max")); got != "50000 100000\n" {
		t.Errorf("cpu.max is %q", got)
	}
	if got := string(readFile(t, group+"/io.max")); !strings.Contains(got, fmt.Sprintf("wbps=%d", 1000*1000)) {
		t.Errorf("io.max is %q", got)
	}
}
