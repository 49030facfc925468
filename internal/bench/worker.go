package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// answer begins the lines that are the worker's answers. A session of cntr 1.6.0 has a terminal, which sends back what
// is written to it as well.
const answer = "bench! "

// Work is a worker: it does what the lines on in say, and answers each with one line on out.
//
//	prepare NAME WORK SCRATCH    →    ok NANOSECONDS
//	run NAME WORK SCRATCH        →    ok NANOSECONDS, or failed REASON
//	quit
//
// Its first line is "ready DEVICE", with the device number of its root directory.
func Work(in io.Reader, out io.Writer) error {
	// One thread does it all; the Go runtime's others would only steal time from it and from the server.
	runtime.GOMAXPROCS(1)
	runtime.LockOSThread()
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return err
	}
	fmt.Fprintf(out, "%sready %d\n", answer, st.Dev)
	lines := bufio.NewScanner(in)
	for lines.Scan() && lines.Text() != "quit" {
		took, err := step(lines.Text())
		if err != nil {
			fmt.Fprintf(out, "%sfailed %s\n", answer, oneLine(err.Error()))
			continue
		}
		fmt.Fprintf(out, "%sok %d\n", answer, took.Nanoseconds())
	}
	return lines.Err()
}

// step does what one line says.
func step(line string) (time.Duration, error) {
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return 0, fmt.Errorf("malformed request %q", line)
	}
	w, err := find(fields[1])
	if err != nil {
		return 0, err
	}
	p := place{work: fields[2], scratch: fields[3]}
	// So that a directory is not held, and removed under us, for longer than needed.
	defer func() { _ = os.Chdir("/") }()
	begin := time.Now()
	switch fields[0] {
	case "prepare":
		err = w.warmUp(p)
	case "run":
		err = w.run(p)
	default:
		err = fmt.Errorf("malformed request %q", line)
	}
	return time.Since(begin), err
}

// oneLine makes one short line of a message.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
