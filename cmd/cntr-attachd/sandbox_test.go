//go:build integration

package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
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
	filters := []string{"deb", "grep", "-q", fmt.Sprintf("^Seccomp_filters:.%s$", count[1]), "/proc/self/status"}
	wouldBreak(t, []sandbox{
		{"CapabilityBoundingSet=~CAP_NET_RAW", []string{"deb", "python3", "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"}},
		{"NoNewPrivileges=yes", []string{"deb", "grep", "-q", "NoNewPrivs:.0", "/proc/self/status"}},
		{"SystemCallFilter=~@debug", []string{"deb", "strace", "-o", "/dev/null", "true"}},
		{"RestrictNamespaces=yes", []string{"deb", "unshare", "--mount", "true"}},
		{"RestrictRealtime=yes", []string{"deb", "chrt", "--fifo", "1", "true"}},
		{"LockPersonality=yes", []string{"deb", "setarch", "--addr-no-randomize", "true"}},
		{"MemoryDenyWriteExecute=yes", []string{"deb", "python3", "-c", "import mmap; mmap.mmap(-1, 4096, prot=7)"}},
		{"RestrictSUIDSGID=yes", []string{"deb", "sh", "-c", "touch /tmp/cntr-probe && chmod u+s /tmp/cntr-probe; r=$?; rm -f /tmp/cntr-probe; exit $r"}},
		{"RestrictAddressFamilies=AF_UNIX", []string{"deb", "ip", "address"}},
		{"PrivateDevices=yes", []string{"deb", "true"}},
		{"ProtectHostname=yes", []string{"deb", "unshare", "--uts", "hostname", "probe"}},
		{"ProtectSystem=strict", []string{"--writable", "deb", "touch", probe}},
		{"ReadOnlyPaths=/var/tmp", []string{"--writable", "deb", "touch", probe}},
		{"ProtectHome=yes", []string{"deb", "test", "-e", "/home/alice"}},
		{"PrivateTmp=yes", []string{"deb", "test", "-e", probe}},
		{"SystemCallArchitectures=native", filters},
		{"ProtectKernelModules=yes", filters},
		{"ProtectKernelLogs=yes", filters},
		{"ProtectControlGroups=yes", []string{"deb", "true"}},
		{"PrivateNetwork=yes", []string{"lxc:" + container, "true"}}, // LXC's sockets have names in the network namespace
		{"LimitNOFILE=256", []string{"deb", "sh", "-c", "test $(ulimit -Hn) -gt 256"}},
	})
}

// sandbox is a directive of systemd.exec(5) or its like, and what it would break.
type sandbox struct {
	directive string
	args      []string // of cntr-attach
}

func wouldBreak(t *testing.T, tests []sandbox) {
	t.Helper()
	for _, test := range tests {
		if out, ok := try(t, slices.Concat([]string{"cntr-attach", "--quiet"}, test.args)...); !ok {
			t.Errorf("%q fails without %s: %s", test.args, test.directive, out)
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
			if out, ok := try(t, slices.Concat([]string{"cntr-attach", "--quiet"}, test.args)...); ok {
				t.Errorf("%q works with it: %s", test.args, out)
			} else {
				t.Logf("%s", out)
			}
		})
	}
}
