package session

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arguments is the session process's own command line. It is where a session is described: it is there
// as long as the session is, survives the service, and can be read by ps.
func (i *Info) arguments() []string {
	const most = 4200 // bytes of what a caller chooses: a path with a kind in front
	return append([]string{
		programName,
		"--id=" + i.ID,
		"--machine=" + i.Machine,
		"--class=" + i.Class,
		"--service=" + cut(i.Service, most),
		"--leader=" + strconv.Itoa(i.Leader),
		"--owner=" + strconv.FormatUint(uint64(i.Owner), 10),
		"--user=" + cut(i.User, most),
		"--image=" + cut(i.Image, most),
		"--writable=" + strconv.FormatBool(i.Writable),
		"--tty=" + strconv.FormatBool(i.TTY),
		"--started=" + i.Started.Format(time.RFC3339Nano),
		"--command=" + strconv.Itoa(len(i.Command)),
		"--",
	}, i.Command...)
}

// parseArguments is the reverse of arguments.
func parseArguments(args []string) (Info, error) {
	i := Info{Image: "host"} // of a launcher that knew no others
	if len(args) == 0 || args[0] != programName {
		return i, errors.New("not a session process")
	}
	var err error
	words := -1 // of a launcher that did not tell: all
	for n, arg := range args[1:] {
		if arg == "--" {
			i.Command = args[n+2:]
			if words >= 0 && words <= len(i.Command) {
				i.Command = i.Command[:words]
			}
			return i, nil
		}
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "--id":
			i.ID = value
		case "--machine":
			i.Machine = value
		case "--class":
			i.Class = value
		case "--service":
			i.Service = value
		case "--leader":
			i.Leader, err = strconv.Atoi(value)
		case "--owner":
			i.Owner, err = parseID(value)
		case "--user":
			i.User = value
		case "--image":
			i.Image = value
		case "--writable":
			i.Writable, err = strconv.ParseBool(value)
		case "--tty":
			i.TTY, err = strconv.ParseBool(value)
		case "--started":
			i.Started, err = time.Parse(time.RFC3339Nano, value)
		case "--command":
			words, err = strconv.Atoi(value)
		}
		if err != nil {
			return i, fmt.Errorf("session argument %q: %w", arg, err)
		}
	}
	return i, errors.New("a session process without a command")
}

// argumentsRoom is what the command line of a session may take, in bytes.
const argumentsRoom = 16 << 10

// commandLine is the memory in which the kernel has put this process's arguments, and shows them to others
// (proc_pid_cmdline(5)).
type commandLine []byte

// ownCommandLine returns this process's. From then on os.Args has the name only.
func ownCommandLine() commandLine {
	// The runtime has left them where they were.
	first, last := unsafe.StringData(os.Args[0]), os.Args[len(os.Args)-1]
	size := int(uintptr(unsafe.Pointer(unsafe.StringData(last)))-uintptr(unsafe.Pointer(first))) + len(last)
	os.Args = []string{programName}
	return unsafe.Slice(first, size)
}

// show has the process show other arguments. Those that it was started with leave room for them: there was no session then.
func (l commandLine) show(args []string) error {
	line := strings.Join(args, "\x00")
	if len(line) > len(l) {
		return fmt.Errorf("the command line of a session may have %d bytes, not %d", len(l), len(line))
	}
	clear(l[copy(l, line):])
	// Where this is not allowed (it takes CAP_SYS_RESOURCE and CONFIG_CHECKPOINT_RESTORE), empty arguments follow.
	_ = unix.Prctl(unix.PR_SET_MM, unix.PR_SET_MM_ARG_END, uintptr(unsafe.Pointer(&l[0]))+uintptr(len(line))+1, 0, 0)
	return nil
}

// abridged returns a command line short enough to be repeated wherever sessions are listed.
func abridged(command []string) []string {
	left := 1024 // bytes
	var short []string
	for _, arg := range command {
		if len(arg) >= left {
			return append(short, cut(arg, left)+"…")
		}
		short = append(short, arg)
		left -= len(arg) + 1
	}
	return short
}

// cut returns the first bytes of a text.
func cut(s string, most int) string {
	return strings.ToValidUTF8(s[:min(most, len(s))], "")
}
