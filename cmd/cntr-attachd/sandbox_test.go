//go:build integration

package main

import (
	"fmt"
	"os"
	"regexp"
	"testing"
)

// Each directive that the unit file leaves out would break a tool in the hands of an administrator, or the session itself: what
// works with the unit as it is fails with the directive. With NoNewPrivileges, sudo and ping have no rights but their caller's.
func TestSandboxOfTheServiceWouldBreakSessions(t *testing.T) {
	const probe = "/var/tmp/cntr-probe"
	if err := os.WriteFile(probe, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(probe) })
	const container = "t-sandbox"
	must(t, "/usr/lib/testhost/machine", "start", "lxc", container, "slim")
	t.Cleanup(func() { must(t, "/usr/lib/testhost/machine", "stop", "lxc", container) })
	// A session's commands have as many system call filters as this test.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	count := regexp.MustCompile(`(?m)^Seccomp_filters:\s(\d+)$`).FindSubmatch(status)
	filters := inMachine("deb", "grep", "-q", fmt.Sprintf("^Seccomp_filters:.%s$", count[1]), "/proc/self/status")
	// What is mounted below a private mount is mounted in that mount namespace only (mount_namespaces(7)).
	const private = "/srv/cntr-private"
	must(t, "sh", "-ec", "mkdir -p $0; mount -t tmpfs private $0; mount --make-private $0; mkdir $0/mnt", private)
	t.Cleanup(func() { must(t, "sh", "-ec", "umount --lazy $0; rmdir $0", private) })
	mounted := []string{"sh", "-c", "mount -t tmpfs probe $0/mnt && touch $0/mnt/probe && cntr-attach --quiet deb test -e $0/mnt/probe; r=$?; umount --lazy $0/mnt; exit $r", private}
	// Users' caches are in a directory that the first session makes which needs it.
	const layout = "/var/tmp/cntr-layout"
	must(t, "sh", "-ec", "umoci init --layout $0 && umoci new --image $0:empty", layout)
	t.Cleanup(func() { must(t, "rm", "-r", layout) })
	cached := []string{"sh", "-c", "rm -rf /var/cache/cntr; cntr-attach --quiet --image=oci:$0:empty deb none; test $(stat --format=%a /var/cache/cntr) = 755", layout}
	t.Cleanup(func() { must(t, "rm", "-r", "/var/cache/cntr") })
	wouldBreak(t, []sandbox{
		{"CapabilityBoundingSet=~CAP_NET_RAW", inMachine("deb", "python3", "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)")},
		{"NoNewPrivileges=yes", inMachine("deb", "grep", "-q", "NoNewPrivs:.0", "/proc/self/status")},
		{"SystemCallFilter=~@debug", inMachine("deb", "strace", "-o", "/dev/null", "true")},
		{"RestrictNamespaces=yes", inMachine("deb", "unshare", "--mount", "true")},
		{"RestrictRealtime=yes", inMachine("deb", "chrt", "--fifo", "1", "true")},
		{"LockPersonality=yes", inMachine("deb", "setarch", "--addr-no-randomize", "true")},
		{"MemoryDenyWriteExecute=yes", inMachine("deb", "python3", "-c", "import mmap; mmap.mmap(-1, 4096, prot=7)")},
		{"RestrictSUIDSGID=yes", inMachine("deb", "sh", "-c", "touch /tmp/cntr-probe && chmod u+s /tmp/cntr-probe; r=$?; rm -f /tmp/cntr-probe; exit $r")},
		{"RestrictAddressFamilies=AF_UNIX", inMachine("deb", "ip", "address")},
		{"PrivateDevices=yes", inMachine("deb", "true")},
		{"ProtectHostname=yes", inMachine("deb", "unshare", "--uts", "hostname", "probe")},
		{"ProtectSystem=strict", inMachine("--writable", "deb", "touch", probe)},
		{"ReadOnlyPaths=/var/tmp", inMachine("--writable", "deb", "touch", probe)},
		{"ProtectHome=yes", inMachine("deb", "test", "-e", "/home/alice")},
		{"PrivateTmp=yes", inMachine("deb", "test", "-e", probe)},
		{"SystemCallArchitectures=native", filters},
		{"ProtectKernelModules=yes", filters},
		{"ProtectKernelLogs=yes", filters},
		{"ProtectClock=yes", filters},
		{"PrivateMounts=yes", mounted},
		{"ProtectKernelTunables=yes", mounted},
		{"ProtectProc=invisible", mounted},
		{"ProcSubset=pid", mounted},
		{"PrivateIPC=yes", mounted},
		{"PrivateUsers=yes", inMachine("deb", "true")},
		{"UMask=0077", cached},
		{"ProtectControlGroups=yes", inMachine("deb", "true")},
		{"PrivateNetwork=yes", inMachine("lxc:"+container, "true")}, // LXC's sockets have names in the network namespace
		{"LimitNOFILE=256", inMachine("deb", "sh", "-c", "test $(ulimit -Hn) -gt 256")},
	})
}

// sandbox is a directive of systemd.exec(5) or its like, and what it would break.
type sandbox struct {
	directive string
	command   []string // fails with the directive
}

// inMachine is the command that runs another one in a machine.
func inMachine(args ...string) []string { return append([]string{"cntr-attach", "--quiet"}, args...) }

func wouldBreak(t *testing.T, tests []sandbox) {
	t.Helper()
	for _, test := range tests {
		if out, ok := try(t, test.command...); !ok {
			t.Errorf("%q fails without %s: %s", test.command, test.directive, out)
		}
	}
	for _, test := range tests {
		t.Run(test.directive, func(t *testing.T) {
			// A transient unit: those of files are all read anew for a change.
			stop(t)
			// As left by a session that the last service did not see the end of, because it was stopped itself.
			if err := os.WriteFile("/run/cntr-attach/00000000.json", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			must(t, "systemd-run", "--quiet", "--collect", "--unit=cntr-sandbox", "--service-type=notify", "--property=KillMode=process",
				"--property="+test.directive, binary)
			defer must(t, "systemctl", "stop", "cntr-sandbox.service")
			if out, ok := try(t, test.command...); ok {
				t.Errorf("%q works with it: %s", test.command, out)
			} else {
				t.Logf("%s", out)
			}
		})
	}
}
