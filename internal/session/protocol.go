package session

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// fdControl is the one descriptor that a session process is started with: a stream socket, to talk about the start with a
// [Launcher] of the same version, for the program is a sealed copy that the launcher made.
const fdControl = 3

// programName is the first argument of a session process, and its name; waitingName takes the place of both as long as it has
// no session.
const (
	programName = "cntr-session"
	waitingName = "cntr-waiting"
)

// descriptors come on the control socket before the request, which tells which there are.
type descriptors struct {
	leader           *os.File    // pidfd of the machine's leader
	status           *os.File    // the status pipe
	sessions, shield *os.File    // the shield's table of sessions, and what keeps it up: if there is a shield
	image            *os.File    // pidfd of the leader of the machine that is the image, if one is
	stdio            [3]*os.File // unless there is a terminal
}

// places returns where the descriptors that a request comes with are kept, in the order in which they are sent.
func (d *descriptors) places(r *request) []**os.File {
	places := []**os.File{&d.leader, &d.status}
	if r.Shielded {
		places = append(places, &d.sessions, &d.shield)
	}
	if r.Image.Machine != "" {
		places = append(places, &d.image)
	}
	if !r.Terminal {
		places = append(places, &d.stdio[0], &d.stdio[1], &d.stdio[2])
	}
	return places
}

// mostDescriptors is how many can come with a request.
const mostDescriptors = 8

// send sends descriptors, which stay the caller's, and the request.
func (r *request) send(control *net.UnixConn, d descriptors) error {
	var fds []int
	for _, place := range d.places(r) {
		fds = append(fds, int((*place).Fd()))
	}
	// With a byte of their own, which JSON does not mind: a long request may take several writes.
	if _, _, err := control.WriteMsgUnix([]byte("\n"), unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	return json.NewEncoder(control).Encode(r)
}

// receiveRequest waits for a request. The caller owns the descriptors, which are close-on-exec. A launcher that has no
// request any more is io.EOF.
func receiveRequest(control *net.UnixConn) (r request, d descriptors, lines *json.Decoder, err error) {
	oob := make([]byte, unix.CmsgSpace(4*mostDescriptors))
	n, oobn, _, _, err := control.ReadMsgUnix(make([]byte, 1), oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return r, d, nil, err
	}
	lines = json.NewDecoder(control)
	if err := lines.Decode(&r); err != nil {
		return r, d, nil, err
	}
	fds, places := rights(oob[:oobn]), d.places(&r)
	if len(fds) != len(places) {
		return r, d, nil, fmt.Errorf("%d descriptors came with a request for %d", len(fds), len(places))
	}
	for i, place := range places {
		*place = os.NewFile(uintptr(fds[i]), "of the session")
	}
	return r, d, lines, nil
}

// request is the first line on the control socket.
type request struct {
	Info         Info          `json:"info"`
	Caller       *Caller       `json:"caller,omitempty"`
	Results      string        `json:"results,omitempty"` // directory for the result, if the service wants it
	Image        imageRequest  `json:"image,omitzero"`
	Command      []string      `json:"command"` // whole, where Info's may be cut short
	Shell        bool          `json:"shell,omitempty"`
	Env          []string      `json:"env"`
	CallerEnv    []string      `json:"callerenv,omitempty"`
	Dir          string        `json:"dir"`
	Strict       bool          `json:"strict,omitempty"`
	Capabilities *Capabilities `json:"capabilities,omitempty"`
	NoLabel      bool          `json:"nolabel,omitempty"`
	NoWatch      bool          `json:"nowatch,omitempty"`
	Shielded     bool          `json:"shielded,omitempty"` // there is a shield
	Terminal     bool          `json:"terminal"`
	Rows         uint16        `json:"rows"`
	Columns      uint16        `json:"columns"`
	Scope        string        `json:"scope,omitempty"` // the scope that the process will be in, if there is systemd
}

// imageRequest tells of the image, if it is not the host.
type imageRequest struct {
	Path    string `json:"path,omitempty"`
	OCI     string `json:"oci,omitempty"`     // what is at Path, and
	Tag     string `json:"tag,omitempty"`     // which image of it
	Machine string `json:"machine,omitempty"` // its typed name, and
	Leader  int    `json:"leader,omitempty"`
	Trusted bool   `json:"trusted,omitempty"`
}

// proceed is the second line: the process is where it belongs, and may fork.
type proceed struct {
	FewTasks bool `json:"fewtasks,omitempty"` // the session's command may use up all that it may have
}

// reply is the session process's only line: the command runs, or why it does not. The master of the
// terminal comes along with the first byte.
type reply struct {
	Error *fail.Error `json:"error,omitempty"`
}

// replyLimit is enough for any reply: a message quotes at most a few arguments. In bytes.
const replyLimit = 64 << 10

func sendReply(control *net.UnixConn, failed error, terminal *os.File) error {
	line, err := json.Marshal(reply{fail.From(failed)})
	if err != nil {
		return err
	}
	if len(line) > replyLimit {
		line, err = json.Marshal(reply{fail.New(fail.From(failed).Code, "", "the session could not start")})
		if err != nil {
			return err
		}
	}
	var rights []byte
	if terminal != nil {
		rights = unix.UnixRights(int(terminal.Fd()))
	}
	_, _, err = control.WriteMsgUnix(append(line, '\n'), rights, nil)
	return err
}

// receiveReply waits for the reply. The caller owns the terminal, which may be nil.
func receiveReply(control *net.UnixConn) (terminal *os.File, err error) {
	line := make([]byte, 0, replyLimit+1)
	for len(line) == 0 || line[len(line)-1] != '\n' {
		oob := make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := control.ReadMsgUnix(line[len(line):cap(line)], oob)
		if fds := rights(oob[:oobn]); len(fds) > 0 && terminal == nil {
			terminal = os.NewFile(uintptr(fds[0]), "terminal")
		}
		if err != nil || n == 0 {
			closeAll(terminal)
			return nil, fmt.Errorf("the session process ended before it could tell why (%w)", err)
		}
		line = line[:len(line)+n]
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		closeAll(terminal)
		return nil, fmt.Errorf("reading the session process's reply: %w", err)
	}
	if r.Error != nil {
		closeAll(terminal)
		return nil, r.Error
	}
	return terminal, nil
}

// rights returns the descriptors in a control message. The kernel makes them close-on-exec because
// package net asks for that (MSG_CMSG_CLOEXEC).
func rights(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for _, m := range messages {
		if list, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, list...)
		}
	}
	return fds
}

// closeAll closes those files that are not nil, on a path where an error of it has no reader.
func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
