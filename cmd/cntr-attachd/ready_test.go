//go:build integration

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/machine"
)

// waiting returns the process that waits for the service's next session.
func waiting(t *testing.T, service *machine.Leader) *machine.Leader {
	t.Helper()
	settledDescriptors(t, service)
	return process(t, must(t, "pgrep", "--parent", strconv.Itoa(service.PID), "--exact", "cntr-waiting"))
}

// A session takes the process that waits, and another one waits then.
func TestProcessWaitsForTheNextSession(t *testing.T) {
	c := connect(t)
	awaitNoSession(t, c)
	first := waiting(t, serviceProcess(t))
	s := attach(t, c, "slim")
	if pid := processesOf(t, "cntr-slim-"+s.ID+".scope")["cntr-session"]; pid != first.PID {
		t.Errorf("process %d waited, %d has the session", first.PID, pid)
	}
	second := waiting(t, serviceProcess(t))
	if second.PID == first.PID {
		t.Error("the process of a session waits for another")
	}
	if end := s.finish(t); end.ExitCode() != 0 {
		t.Errorf("%+v", end)
	}
}

// A process that was started before there was a session shows the session's command line all the same.
func TestSessionShowsItsCommandLine(t *testing.T) {
	c := connect(t)
	waiting(t, serviceProcess(t))
	s := attach(t, c, "slim")
	pid := processesOf(t, "cntr-slim-"+s.ID+".scope")["cntr-session"]
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	shown := strings.TrimRight(string(line), "\x00")
	if !strings.HasPrefix(shown, "cntr-session\x00--id="+s.ID+"\x00--machine=nspawn:slim\x00") || !strings.HasSuffix(shown, "\x00--\x00cat") {
		t.Errorf("it shows %q", shown)
	}
	// Without that capability it has empty arguments at its end.
	if capable(t, unix.CAP_SYS_RESOURCE) && string(line) != shown+"\x00" {
		t.Errorf("%d bytes follow what it shows", len(line)-len(shown))
	}
	if end := s.finish(t); end.ExitCode() != 0 {
		t.Errorf("%+v", end)
	}
}

func capable(t *testing.T, capability int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// That the process which waits was killed is not noticed by anybody.
func TestKilledProcessThatWaitedIsReplaced(t *testing.T) {
	c := connect(t)
	awaitNoSession(t, c)
	for range 5 {
		w := waiting(t, serviceProcess(t))
		if err := unix.PidfdSendSignal(int(w.File.Fd()), unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		if !w.Wait(patience) {
			t.Fatal("it does not end")
		}
		if end := attach(t, c, "slim").finish(t); end.ExitCode() != 0 {
			t.Errorf("%+v", end)
		}
	}
}

// The process that waits goes with the service, however that ends.
func TestProcessThatWaitsEndsWithTheService(t *testing.T) {
	c := connect(t)
	for name, end := range map[string]func(service *machine.Leader){
		"stopped": func(*machine.Leader) { stop(t) },
		"killed": func(service *machine.Leader) {
			if err := unix.PidfdSendSignal(int(service.File.Fd()), unix.SIGKILL, nil, 0); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			sessionIDs(t, c) // starts it
			service := serviceProcess(t)
			w := waiting(t, service)
			end(service)
			if !w.Wait(patience) {
				t.Error("it goes on")
			}
		})
	}
}
