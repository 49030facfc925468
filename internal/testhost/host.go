package testhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// A Host is the test host of a name, running or not.
type Host struct {
	Name string
	Log  func(format string, args ...any) // says what is being done

	dir   string // its files: state.json, console.log, lock
	state state
}

// state is what is recorded of a test host that runs, or that was being started.
type state struct {
	Key        string    `json:"key"`        // of the trees that it was copied from
	Repo       string    `json:"repo"`       // the source tree that it sees, read-only, at the same path
	Root       string    `json:"root"`       // its root directory, as seen from outside
	Supervisor process   `json:"supervisor"` // systemd-nspawn
	Leader     process   `json:"leader"`     // its process 1
	Started    time.Time `json:"started"`
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// Open returns the test host that TESTHOST names, else the one called "default".
func Open() (*Host, error) {
	name := os.Getenv("TESTHOST")
	if name == "" {
		name = "default"
	}
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("invalid name of a test host %q: lower case letters, digits and hyphens", name)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the test host needs root: it is a container that may do all that root may")
	}
	h := &Host{
		Name: name,
		Log:  func(format string, args ...any) { fmt.Fprintf(os.Stderr, "testhost: "+format+"\n", args...) },
		dir:  filepath.Join("/run/cntr-attach-testhost", name),
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, err
	}
	return h, h.load()
}

// Root is the running test host's root directory as seen from outside.
func (h *Host) Root() string { return h.state.Root }

// Running says whether the test host's first process is there.
func (h *Host) Running() bool { return h.state.Leader.alive() }

// Up boots the test host, with its machines, for the source tree repo. One that already runs for it is
// left as it is.
func (h *Host) Up(ctx context.Context, repo string) error {
	held, err := lock(ctx, filepath.Join(h.dir, "lock"))
	if err != nil {
		return err
	}
	defer held.Close()
	if err := h.load(); err != nil {
		return err
	}
	if h.Running() && h.state.Repo == repo && h.state.Key == key(recipes) {
		return h.waitRunning(ctx)
	}
	// Whatever an earlier run left, if it crashed.
	if err := h.down(ctx); err != nil {
		return err
	}
	if err := h.boot(ctx, repo); err != nil {
		// Also if the reason was that the time is up.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(err, h.down(last))
	}
	return nil
}

func (h *Host) boot(ctx context.Context, repo string) error {
	cached, err := build(ctx, recipes, h.Log)
	if err != nil {
		return err
	}
	begin := time.Now()
	h.state = state{
		Key: key(recipes), Repo: repo, Started: begin,
		Root: filepath.Join(cacheDir(), "run", h.Name, "root"),
	}
	if err := h.save(); err != nil {
		return err
	}
	if err := layTree(ctx, cached, h.Root()); err != nil {
		return err
	}
	laid := time.Now()
	if err := h.start(ctx); err != nil {
		return err
	}
	if err := h.waitRunning(ctx); err != nil {
		return err
	}
	h.Log("%s is up: copied in %.1f s, booted in %.1f s", h.Name,
		laid.Sub(begin).Seconds(), time.Since(laid).Seconds())
	return nil
}

// Down ends the test host and removes all that there is of it. It is no error if there is none.
func (h *Host) Down(ctx context.Context) error {
	held, err := lock(ctx, filepath.Join(h.dir, "lock"))
	if err != nil {
		return err
	}
	defer held.Close()
	if err := h.load(); err != nil {
		return err
	}
	return h.down(ctx)
}

// down kills the first process of the test host: the kernel ends all the others with it, in any nested
// machine too. An orderly shutdown would wait a minute and more for machines that hang, as they may in
// a test; and killing systemd-nspawn would leave the machine running.
func (h *Host) down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	leaders := []process{h.state.Leader}
	if !h.Running() {
		// Killed before the leader was on record.
		leaders = h.state.Supervisor.liveChildren()
	}
	for _, leader := range leaders {
		unstick := func() error { return abortFUSE(leader, h.dir) }
		if err := leader.kill(ctx, 2*time.Second, unstick); err != nil {
			return fmt.Errorf("end the test host: %w", err)
		}
	}
	// Without its child systemd-nspawn cleans up and ends.
	if err := h.state.Supervisor.waitOrKill(ctx, 10*time.Second); err != nil {
		return fmt.Errorf("end systemd-nspawn: %w", err)
	}
	if err := removeControlGroups(h.Name); err != nil {
		return err
	}
	if h.state.Root != "" {
		h.removeTraces()
		if err := removeTree(filepath.Dir(h.state.Root)); err != nil {
			return err
		}
	}
	h.state = state{}
	for _, name := range []string{"state.json", "console.log", "notify"} {
		if err := os.Remove(filepath.Join(h.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeTraces removes what systemd-nspawn leaves in /run if it is killed: the lock on the tree, and the
// directory through which it would hand mounts to the container.
func (h *Host) removeTraces() {
	const run = "/run/systemd/nspawn"
	var st unix.Stat_t
	if unix.Stat(h.state.Root, &st) == nil {
		_ = os.Remove(fmt.Sprintf("%s/locks/inode-%d:%d", run, st.Dev, st.Ino))
	}
	_ = os.Remove(run + "/propagate/testhost-" + h.Name)
}

// load reads the state; a test host that does not run has none.
func (h *Host) load() error {
	h.state = state{}
	data, err := os.ReadFile(filepath.Join(h.dir, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &h.state); err != nil {
		return fmt.Errorf("read %s/state.json: %w", h.dir, err)
	}
	return nil
}

// save writes the state in one step.
func (h *Host) save() error {
	data, err := json.MarshalIndent(h.state, "", "\t")
	if err != nil {
		return err
	}
	temp := filepath.Join(h.dir, "state.json.new")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(h.dir, "state.json"))
}

// console is what the test host wrote to its console.
func (h *Host) console() string {
	data, err := os.ReadFile(filepath.Join(h.dir, "console.log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}
