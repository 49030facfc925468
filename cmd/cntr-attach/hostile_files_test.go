//go:build integration

package main

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// skeleton lays out the root directory of a handmade machine.
func skeleton(t *testing.T, root string) {
	t.Helper()
	for _, dir := range []string{"etc", "proc", "sys", "dev", "tmp", "run"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		t.Error(err)
	}
}

// A machine may serve a file system itself, and not answer. Where an attach would have to read from it, it fails, soon, and
// says why. A request that the server has read cannot be taken back: what waits for it in the kernel ends
// with the server, at the latest.
func TestMachineServesAFileSystemThatHangs(t *testing.T) {
	var all sync.WaitGroup
	for i, on := range []string{"/etc/passwd", "/etc", "/tmp", "/run", "/sys", "/dev", "/proc"} {
		for j, way := range []string{"read", "left alone"} {
			mode := []string{"--quiet", "--direct"}[(i+j)%2]
			machine, kill := handmade(t, func(root string) { skeleton(t, root) }, "hang", on, way)
			all.Add(1)
			go func() {
				defer all.Done()
				begin := time.Now()
				o := attachTo(t, mode, machine, "true")
				if on == "/proc" { // which is no procfs, so nothing is read of it
					if o != (outcome{}) {
						t.Errorf("%s, %s, %s: %+v", on, way, mode, o)
					}
				} else if o.code != 125 || !strings.Contains(o.stderr, "cannot be looked into") || strings.Count(o.stderr, "\n") != 2 {
					t.Errorf("%s, %s, %s: %+v", on, way, mode, o)
				}
				if took := time.Since(begin); took > 10*time.Second {
					t.Errorf("%s, %s, %s: took %v", on, way, mode, took)
				}
				kill()
			}()
		}
	}
	all.Wait()
	nothingIsLeft(t)
}

// A machine exchanges what a session takes from it for symbolic links, over and over (CVE-2018-15664, CVE-2026-41579): a
// session gets the one or the other, but never what the host has at the end of the link.
func TestMachineSwapsFilesForLinks(t *testing.T) {
	makeSecret(t)
	const own = "of the machine\n"
	for _, test := range []struct {
		name    string
		swapped []string
	}{
		{"what is taken over", []string{"etc/passwd", "etc/hosts", "etc/hostname", "etc/resolv.conf", "tmp", "run", "dev", "sys"}},
		{"the directory above", []string{"etc"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var pairs []string
			machine, kill := handmade(t, func(root string) {
				skeleton(t, root)
				for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
					if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(own), 0o644); err != nil {
						t.Error(err)
					}
				}
				for _, name := range test.swapped {
					at, target := filepath.Join(root, name), strings.Repeat("../", 20)+"root"
					if strings.HasPrefix(name, "etc/") {
						target += "/cntr-secret"
					}
					must(t, "ln", "-s", target, at+".link")
					pairs = append(pairs, at, at+".link")
				}
			}, "wait")
			defer kill()
			// The swapper works from outside: a machine's root could not be any quicker.
			swapper := startCommand(t, append([]string{"env", "HOSTILE=swap", executable(t)}, pairs...)...)
			if got := swapper.line(); got != "ready" {
				t.Fatalf("got %q", got)
			}
			seen := map[int]int{}
			for i := range 16 {
				o := attachTo(t, []string{"--quiet", "--direct"}[i%2], machine, "sh", "-c", `cat /etc/hosts /etc/hostname \
					/etc/resolv.conf /etc/passwd /tmp/cntr-secret /run/cntr-secret /dev/cntr-secret 2>/dev/null; stat -c %t:%T /dev/null`)
				if o.code != 0 || strings.Contains(o.stdout, secret) || !strings.HasSuffix(o.stdout, "1:3\n") {
					t.Errorf("attach %d: %+v", i, o)
				}
				seen[strings.Count(o.stdout, own)]++
			}
			if len(seen) < 2 {
				t.Errorf("nothing was exchanged at the right moment: %v", seen)
			}
			swapper.stop()
			nothingIsLeft(t)
		})
	}
}

func executable(t *testing.T) string {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// What a machine has at /proc that is no procfs, or not its own, is not taken for one: what is written there would go
// nowhere, and what is read be made up (CVE-2015-1334, CVE-2019-16884, CVE-2025-52881).
func TestMachineHasAFakeProc(t *testing.T) {
	for name, mount := range map[string]string{
		"a directory":                         `mkdir -p "$1/proc/1" "$1/proc/self/attr"; echo fake >"$1/proc/1/comm"`,
		"a tmpfs":                             `mount -t tmpfs none "$1/proc"; mkdir "$1/proc/1"; echo fake >"$1/proc/1/comm"`,
		"the procfs of another pid namespace": `mount --rbind /proc "$1/proc"`,
		"a procfs with another over it":       `mount -t proc proc "$1/proc"; mount -t tmpfs none "$1/proc/1"; echo fake >"$1/proc/1/comm"`,
	} {
		t.Run(name, func(t *testing.T) {
			machine := mountedMachine(t, mount)
			for _, mode := range []string{"--quiet", "--direct"} {
				// Process 1 is the machine's, and there are the two of the session and no others.
				out := succeeds(t, mode, machine, "sh", "-c", "cat /proc/1/comm; stat -f -c %T /proc/1; ls -d /proc/[0-9]* | wc -l; readlink /proc/self")
				lines := strings.Fields(out)
				if len(lines) != 4 || lines[0] != "slim" || lines[1] != "proc" || len(lines[2]) != 1 {
					t.Errorf("%s: %q", mode, out)
				}
			}
		})
	}
}

// A /proc that hides others' processes, or has parts masked as Docker does it, stays as it is.
func TestMachineHidesPartsOfProc(t *testing.T) {
	machine := mountedMachine(t, `mount -t proc -o hidepid=invisible proc "$1/proc"
		mount --bind /dev/null "$1/proc/interrupts"; mount -t tmpfs -o ro,size=4k none "$1/proc/fs"
		mount --bind "$1/proc/sys" "$1/proc/sys"; mount -o remount,ro,bind "$1/proc/sys"`)
	for _, mode := range []string{"--quiet", "--direct"} {
		out := succeeds(t, mode, machine, "sh", "-c", `cat /proc/1/comm; stat -c %t:%T /proc/interrupts; ls /proc/fs
			echo x 2>/dev/null >/proc/sys/kernel/hostname || echo read-only`)
		if out != "slim\n1:3\nread-only\n" {
			t.Errorf("%s: %q", mode, out)
		}
		if out := succeeds(t, mode, "--user=33", machine, "sh", "-c", "ls -d /proc/1 2>/dev/null; echo $?"); out != "2\n" {
			t.Errorf("%s: another user sees %q", mode, out)
		}
	}
}

// What a machine has in the places where the loader and NSS look (CVE-2019-14271) is never loaded: the programs that
// work on a machine load nothing at all, and tools find the host's.
func TestMachineHasPoisonedLibraries(t *testing.T) {
	for _, program := range []string{"/usr/bin/cntr-attach", "/usr/lib/cntr-attach/cntr-session"} {
		file, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range file.Progs {
			if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
				t.Errorf("%s loads libraries: it has %v", program, part.ProgHeader)
			}
		}
		_ = file.Close()
	}
	machine := oddMachine(t, func(root string) {
		must(t, "mkdir", "-p", root+"/etc")
		must(t, "sh", "-c", `cd "$1/etc" && echo /poison.so >ld.so.preload && echo 'passwd: poison' >nsswitch.conf &&
			echo 'hosts: poison' >>nsswitch.conf && echo root:x:0:0::/:/bin/sh >passwd && echo /poison >ld.so.conf`, "sh", root)
		// What is no library at all is complained about by whoever loads it.
		must(t, "sh", "-c", `cd "$1" && for l in poison.so lib/x86_64-linux-gnu/libnss_poison.so.2 lib/x86_64-linux-gnu/libnss_files.so.2
			do echo poison >$l; done`, "sh", root)
	})
	for _, mode := range []string{"--quiet", "--direct"} {
		if o := attachTo(t, mode, machine, "sh", "-c", "id -un; getent hosts localhost | grep -c localhost"); o != (outcome{"root\n1\n", "", 0}) {
			t.Errorf("%s: %+v", mode, o)
		}
	}
}
