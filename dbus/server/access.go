package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/bus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
	"github.com/cntr-attach/cntr-attach/internal/machine"
	"github.com/cntr-attach/cntr-attach/internal/session"
)

// action is something that polkit has an opinion on; see org.cntr.Attach1.policy.
type action string

const (
	actionAttach     action = dbus.Name + ".attach"
	actionPrivileged action = dbus.Name + ".attach-privileged"
	actionWritable   action = dbus.Name + ".attach-writable"
	actionInspect    action = dbus.Name + ".inspect"
	actionManage     action = dbus.Name + ".manage-sessions"
)

// askTimeout bounds how long somebody may take to type a password.
const askTimeout = 5 * time.Minute

// names of polkit on the bus (org.freedesktop.PolicyKit1.Authority).
const (
	polkitName      = "org.freedesktop.PolicyKit1"
	polkitPath      = "/org/freedesktop/PolicyKit1/Authority"
	polkitInterface = "org.freedesktop.PolicyKit1.Authority"
	polkitCancelled = "org.freedesktop.PolicyKit1.Error.Cancelled"
	polkitAskUser   = uint32(1) // CheckAuthorizationFlags: AllowUserInteraction
)

// polkitSubject is whom polkit is asked about: a connection to the bus, by its unique name, which is never used again.
type polkitSubject struct {
	Kind    string
	Details map[string]godbus.Variant
}

// authorize asks polkit whether the caller may do something. Root may do anything, and where there is no polkit only root
// may. If the message allows it, polkit asks somebody for a password, and the answer can take minutes: who goes on
// afterwards needs a time limit of its own (see [server.renewed]), and whatever was looked up before may be gone
// (CVE-2020-1712).
func (s *server) authorize(ctx context.Context, who caller, what action, details map[string]string) error {
	if who.trusted() {
		return nil
	}
	var flags uint32
	limit := callTimeout
	if who.interactive {
		flags, limit = polkitAskUser, askTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()

	subject := polkitSubject{"system-bus-name", map[string]godbus.Variant{"name": godbus.MakeVariant(who.name)}}
	if details == nil {
		details = map[string]string{}
	}
	id := fmt.Sprintf("cntr-%s-%d", who.name, s.questions.Add(1))
	var result struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	args := []any{subject, string(what), details, flags, id}
	err := s.conn.callOf(ctx, bus.MethodCall(polkitName, polkitPath, polkitInterface, "CheckAuthorization", args), &result)
	switch {
	case ctx.Err() != nil:
		m := bus.MethodCall(polkitName, polkitPath, polkitInterface, "CancelCheckAuthorization", []any{id})
		m.Flags = godbus.FlagNoReplyExpected
		_, _ = s.conn.send(m, nil) // it gives up by itself when we are gone
		return fail.New(fail.AccessDenied, "try again", "nobody has answered the question for a password")
	case bus.NotInstalled(err), bus.NotStarted(err):
		return fail.New(fail.AccessDenied, "run it as root", "only root may do this where polkit does not run: %s", what)
	case bus.ErrorName(err) == polkitCancelled:
		return denied(what)
	case bus.ErrorName(err) == standardError+"NoReply":
		return fail.New(fail.AccessDenied, "try again", "polkit has gone away while it was asked about %s", what)
	case err != nil:
		return fmt.Errorf("asking polkit about %s: %w", what, err)
	case result.Authorized:
		return nil
	case result.Challenge && !who.interactive:
		return fail.New(fail.Unauthenticated, "run it on a terminal to be asked for a password, or as root",
			"authentication is required: %s", what)
	}
	return denied(what)
}

func denied(what action) error {
	return fail.New(fail.AccessDenied, "ask an administrator, or run it as root", "not authorized: %s", what)
}

// renewed returns a context with a whole call's time to go: what came before may have waited for a password.
func renewed(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
}

// find resolves the machine of an attach, if the caller may have a session in it. The caller of find closes it.
func (s *server) find(ctx context.Context, who caller, name string, spec *attachSpec) (*machine.Machine, []*machine.Failure, error) {
	m, failed, err := s.Machines.Find(ctx, name)
	if err == nil {
		s.choose(spec, m)
	}
	if who.trusted() {
		return m, failed, err
	}
	details := map[string]string{
		"machine": clean(name), "user": spec.User, "command_line": clean(strings.Join(spec.Command, " ")),
		"image": clean(spec.image.String()),
	}
	if spec.User == "" {
		details["user"] = "root"
	}
	if err != nil {
		// What machines there are is not told to just anybody (CVE-2016-6349), and who may list them is not asked for
		// a password because of a slip of the finger.
		if s.authorize(ctx, who.quiet(), actionInspect, nil) == nil {
			return nil, nil, err
		}
		if refused := s.authorize(ctx, who, actionAttach, details); refused != nil {
			return nil, nil, refused
		}
		return nil, nil, err
	}
	keep := false
	defer func() {
		if !keep {
			_ = m.Close()
		}
	}()
	standing, err := s.Sessions.Standing(m)
	if err != nil {
		return nil, nil, err
	}
	needed := needs(who, standing, &spec.Spec)
	if len(needed) == 0 {
		keep = true
		return m, failed, nil
	}
	details["machine"] = clean(m.Ref())
	for _, what := range needed {
		if err := s.authorize(ctx, who, what, details); err != nil {
			return nil, nil, err
		}
	}
	ctx, cancel := renewed(ctx)
	defer cancel()
	now, err := s.again(ctx, m)
	return now, failed, err
}

// needs returns the actions that the caller must be allowed for a session in a machine. For one of their own it is
// none: they can do all that there and, with the session acting as them, on the host. A machine that is root on the
// host's terms is nobody's own. A session without the machine's security label has rights that the machine has not.
func needs(who caller, standing session.Standing, spec *session.Spec) []action {
	attach := actionAttach
	if standing.Privileged || spec.NoLabel {
		attach = actionPrivileged
	} else {
		for _, uid := range standing.Owners {
			if uid == who.uid {
				return nil
			}
		}
	}
	if spec.Writable {
		return []action{attach, actionWritable}
	}
	return []action{attach}
}

// again looks a machine up again after the question whether somebody may attach to it. It must still be the one that the
// question was about: a name may be another machine's by now.
func (s *server) again(ctx context.Context, m *machine.Machine) (*machine.Machine, error) {
	now, _, err := s.Machines.Find(ctx, m.Ref())
	if err != nil {
		return nil, err
	}
	// While the first leader lives, its number means nobody else.
	if !m.Leader.Alive() || now.Leader.PID != m.Leader.PID {
		_ = now.Close()
		return nil, fail.New(fail.NotRunning, "try again", "machine %q was replaced by another one meanwhile", m.Ref())
	}
	return now, nil
}
