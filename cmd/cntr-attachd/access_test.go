//go:build integration

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/dbus"
	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// asAlice is what a command of a user without any login session begins with.
var asAlice = []string{"setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "env", "HOME=/home/alice"}

func alice(command ...string) []string { return slices.Concat(asAlice, command) }

// inActiveSession makes a command one of alice's at the console.
func inActiveSession(t *testing.T, command ...string) []string {
	t.Helper()
	return append([]string{
		"systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--uid=alice", "-p", "PAMName=login",
		"-E", "XDG_SEAT=seat0", "-E", "XDG_SESSION_TYPE=tty", "-E", "XDG_SESSION_CLASS=user", "-p", "WorkingDirectory=/", "--", "sh", "-c",
		// A seat without consoles has no session that is active by itself.
		`until [ "$(loginctl show-session "$XDG_SESSION_ID" -P Active)" = yes ]; do
			busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager ActivateSessionOnSeat ss "$XDG_SESSION_ID" seat0 >/dev/null
		done; exec "$@"`, "sh",
	}, command...)
}

// grant lets alice do what polkit would ask for, for one test.
func grant(t *testing.T, actions ...string) {
	t.Helper()
	const rules = "/etc/polkit-1/rules.d/10-cntr-test.rules"
	var names []string
	for _, a := range actions {
		names = append(names, fmt.Sprintf("%q", "org.cntr.Attach1."+a))
	}
	text := fmt.Sprintf("polkit.addRule(function(action, subject) {\n"+
		"if (subject.user == 'alice' && [%s].indexOf(action.id) >= 0) return polkit.Result.YES; });\n", strings.Join(names, ", "))
	if err := os.MkdirAll(filepath.Dir(rules), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rules, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	restartPolkit(t) // it would notice by itself, some time
	t.Cleanup(func() {
		_ = os.Remove(rules)
		restartPolkit(t)
	})
}

func restartPolkit(t *testing.T) {
	t.Helper()
	try(t, "systemctl", "reset-failed", "polkit") // for its limit on starts; fails if it is not loaded
	must(t, "systemctl", "restart", "polkit")
}

// ownMachine starts a machine of alice's own, and returns its name. script runs as its root before.
func ownMachine(t *testing.T, script string) string {
	t.Helper()
	unit := "own-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + ".service"
	script += "\nsystemd-notify --ready\nexec sleep 1000\n"
	// What unshare(1) forks is the first process there.
	must(t, "systemd-run", "--quiet", "--collect", "--unit="+unit, "--uid=alice", "--service-type=notify", "-p", "NotifyAccess=all", "-p", "KillSignal=SIGKILL",
		"--expand-environment=no",
		"unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-e", "-c", script)
	t.Cleanup(func() { must(t, "systemctl", "stop", unit) })
	pid := must(t, "systemctl", "show", "--property=MainPID", "--value", unit)
	child, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	if err != nil {
		t.Fatal(err)
	}
	return "pid:" + strings.TrimSpace(string(child))
}

// manager returns a call of the service's that shows errors as they come.
func manager(method string, args ...string) []string {
	return append([]string{
		"dbus-send", "--system", "--print-reply", "--dest=org.cntr.Attach1", "/org/cntr/Attach1", "org.cntr.Attach1.Manager." + method,
	}, args...)
}

func TestWhoMayDoWhat(t *testing.T) {
	const (
		yes         = ""
		challenge   = "authentication is required: org.cntr.Attach1."
		refusal     = "not authorized: org.cntr.Attach1."
		withoutIt   = "only root may do this where polkit does not run"
		listMachine = "lists machines"
		listSession = "lists sessions"
		attachUser  = "attaches to a machine with a user namespace"
		attachRoot  = "attaches to one without"
		writable    = "attaches writably"
		attachOwn   = "attaches to an own machine"
		writableOwn = "attaches writably to an own machine"
		look        = "looks at another's session"
		signal      = "signals another's session"
	)
	others := attach(t, connect(t), "debu")
	own := ownMachine(t, "")
	actions := map[string][]string{
		listMachine: manager("ListMachines"),
		listSession: manager("ListSessions"),
		attachUser:  {"cntr-attach", "debu", "true"},
		attachRoot:  {"cntr-attach", "slim", "true"},
		writable:    {"cntr-attach", "--writable", "debu", "true"},
		attachOwn:   {"cntr-attach", own, "true"},
		writableOwn: {"cntr-attach", "--writable", own, "true"},
		look:        manager("GetSession", "string:"+others.ID),
		signal:      manager("KillSession", "string:"+others.ID, "int32:18"),
	}
	alone := func(_ *testing.T, command ...string) []string { return alice(command...) }
	all := func(want string, but map[string]string) map[string]string {
		m := map[string]string{}
		for a := range actions {
			m[a] = want
		}
		for a, w := range but {
			m[a] = w
		}
		return m
	}
	ownToo := func(but map[string]string) map[string]string {
		but[attachOwn], but[writableOwn] = yes, yes
		return but
	}
	for _, c := range []struct {
		name  string
		who   func(*testing.T, ...string) []string
		setup func(*testing.T)
		want  map[string]string
	}{
		{"root", func(_ *testing.T, command ...string) []string { return command }, nil, all(yes, nil)},
		{"a user without a session", alone, nil, all(challenge, ownToo(map[string]string{}))},
		{"a user at the console", inActiveSession, nil, all(challenge, ownToo(map[string]string{
			listMachine: yes, listSession: yes, look: yes,
		}))},
		{"a user who may attach", alone, func(t *testing.T) { grant(t, "attach") }, all(challenge, ownToo(map[string]string{
			attachUser: yes,
		}))},
		{
			"a user who may attach writably", alone, func(t *testing.T) { grant(t, "attach", "attach-writable") },
			all(challenge, ownToo(map[string]string{attachUser: yes, writable: yes})),
		},
		{
			"a user who may attach to anything", alone, func(t *testing.T) { grant(t, "attach-privileged") },
			all(challenge, ownToo(map[string]string{attachUser: yes, attachRoot: yes})),
		},
		{
			"a user who may manage sessions", alone, func(t *testing.T) { grant(t, "manage-sessions") },
			all(challenge, ownToo(map[string]string{listMachine: yes, listSession: yes, look: yes, signal: yes})),
		},
		{"a user where there is no polkit", alone, func(t *testing.T) {
			must(t, "systemctl", "mask", "--runtime", "--now", "polkit")
			t.Cleanup(func() { must(t, "systemctl", "unmask", "--runtime", "polkit") })
		}, all(withoutIt, ownToo(map[string]string{}))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.setup != nil {
				c.setup(t)
			}
			for action, want := range c.want {
				out, ok := try(t, c.who(t, actions[action]...)...)
				if ok != (want == yes) || !strings.Contains(out, want) {
					t.Errorf("%s: %v, %s; want %q", action, ok, out, want)
				}
			}
		})
	}
}

// What machines and sessions there are is not found out by trying.
func TestNamesAreNotTold(t *testing.T) {
	s := attach(t, connect(t), "debu")
	for _, pair := range [][2][]string{
		{{"cntr-attach", "debu", "true"}, {"cntr-attach", "nowhere", "true"}},
		{manager("GetSession", "string:"+s.ID), manager("GetSession", "string:00000000")},
		{manager("TerminateSession", "string:"+s.ID), manager("TerminateSession", "string:00000000")},
		{
			{"busctl", "introspect", "org.cntr.Attach1", "/org/cntr/Attach1/session/" + s.ID},
			{"busctl", "introspect", "org.cntr.Attach1", "/org/cntr/Attach1/session/00000000"},
		},
	} {
		there, ok1 := try(t, alice(pair[0]...)...)
		not, ok2 := try(t, alice(pair[1]...)...)
		if ok1 || ok2 || strings.ReplaceAll(there, s.ID, "00000000") != not {
			t.Errorf("%q: %s\n%q: %s", pair[0], there, pair[1], not)
		}
	}
}

// Whatever machine it is in, and whatever it is there, a session has the rights of who asked for it on the host's files.
func TestSessionActsAsItsCaller(t *testing.T) {
	must(t, "useradd", "--create-home", "-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", "bob") // root has them all
	t.Cleanup(func() { must(t, "userdel", "--remove", "bob") })
	must(t, "install", "-o", "bob", "-m", "0600", "/etc/hostname", "/home/bob/private")
	must(t, "install", "-o", "bob", "-m", "0644", "/etc/hostname", "/home/bob/public")
	must(t, "install", "-d", "-o", "bob", "-m", "1777", "/var/lib/shared")
	must(t, "install", "-o", "root", "-g", "adm", "-m", "0640", "/etc/hostname", "/var/lib/shared/adm")
	t.Cleanup(func() { _ = os.RemoveAll("/var/lib/shared") })
	must(t, "usermod", "--append", "--groups", "adm", "alice")
	t.Cleanup(func() { must(t, "gpasswd", "--delete", "alice", "adm") })
	grant(t, "attach", "attach-privileged", "attach-writable")
	const script = `
refused() { if "$@" 2>/dev/null; then echo "done: $*"; fi; }
granted() { if ! "$@"; then echo "not done: $*"; fi; }
refused cat /etc/shadow
refused cat /home/bob/private
refused ls /home/bob
refused cat /home/bob/public
refused ls /root
refused touch /etc/x /usr/x
refused sh -c ': >> /etc/fstab'
refused rm -f /var/lib/shared/adm
refused mv /var/lib/shared/adm /var/lib/shared/x
refused chmod 0777 /home
refused chown 0:0 /var/lib/shared
refused mknod /var/lib/shared/disk b 8 0
refused ln /usr/bin/su /var/lib/shared/su
refused setfattr -n trusted.x -v 1 /home/alice
granted sh -c 'cat /var/lib/shared/adm > /dev/null'
granted sh -c 'echo hello > /home/alice/new'
granted sh -c 'echo hello > /var/lib/shared/new'
granted grep -q hello /home/alice/new /var/lib/shared/new
granted chmod 0600 /home/alice/new
`
	for name, machine := range map[string]string{"user namespace": "debu", "none": "deb", "nothing in it": "slim", "own": ownMachine(t, "")} {
		for _, user := range []string{"root", "1234"} {
			if name == "own" && user != "root" {
				continue // its user namespace has nobody else
			}
			t.Run(name+" as "+user, func(t *testing.T) {
				out, ok := try(t, alice("cntr-attach", "--writable", "--user="+user, machine, "sh", "-c", script)...)
				if !ok || out != "" {
					t.Errorf("%v: %s", ok, out)
				}
				for _, file := range []string{"/home/alice/new", "/var/lib/shared/new"} {
					if got := must(t, "stat", "-c", "%U:%G", file); got != "alice:alice" {
						t.Errorf("%s belongs to %s", file, got)
					}
					must(t, "rm", file)
				}
			})
		}
	}
}

// A user's own machine has mounts and links to whatever the user wants. A session takes nothing of that with root's rights.
func TestOwnMachineGivesNoRights(t *testing.T) {
	must(t, "useradd", "--create-home", "-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", "bob") // root has them all
	t.Cleanup(func() { must(t, "userdel", "--remove", "bob") })
	must(t, "chmod", "0700", "/home/bob")
	must(t, "install", "-d", "-o", "bob", "-m", "0755", "/home/bob/dir", "/home/bob/etc")
	for _, f := range []string{"/home/bob/dir/secret", "/home/bob/hosts", "/home/bob/passwd"} {
		if err := os.WriteFile(f, []byte("bob's secret\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir := must(t, alice("mktemp", "-d", "/var/tmp/own.XXXXXX")...)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// Mounted are files and directories that alice cannot open, which takes no right in a namespace of her own.
	for name, prepare := range map[string]string{
		"shadow for passwd": "mkdir etc proc\n: > etc/passwd\n: > etc/group\nmount --bind /etc/shadow etc/passwd\nmount --bind /etc/gshadow etc/group",
		"a home for etc":    "mkdir etc proc\nmount --bind /home/bob etc",
		"a link for run":    "mkdir etc proc\nmount --bind /home/bob etc\nln -s etc/dir run\nln -s etc/dir tmp",
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			must(t, alice("mkdir", root)...)
			// The machine's first process is one with that root; chroot(1) would want a program there.
			machine := ownMachine(t, "cd "+root+"\n"+prepare+"\nmkdir usr\nmount --rbind /usr usr\n"+
				"ln -s usr/bin bin\nln -s usr/lib lib\nln -s usr/lib64 lib64\nmount -t proc proc proc\n"+
				"systemd-notify --ready\nexec chroot . /usr/bin/sleep 1000")
			out, _ := try(t, alice("cntr-attach", machine, "sh", "-c",
				"cat /etc/passwd /etc/group /etc/hosts /run/* /tmp/*; find /var/lib/cntr/etc /run /tmp -name secret -exec cat {} +")...)
			if strings.Contains(out, "secret\n") || strings.Contains(out, "root:*:") || strings.Contains(out, "root:!") || strings.Contains(out, "root:$") {
				t.Errorf("it is told\n%s", out)
			}
			if !strings.Contains(out, "root:x:0:") {
				t.Errorf("there is no session:\n%s", out)
			}
		})
	}
}

func TestLimitsOnSessions(t *testing.T) {
	configure(t, "--max-sessions-per-user=2", "--max-sessions=3")
	own := ownMachine(t, "")
	for range 2 {
		catSession(t, alice("cntr-attach", own, "cat")...)
	}
	if out, ok := try(t, alice("cntr-attach", own, "true")...); ok || !strings.Contains(out, "user 1000 has 2 sessions already") {
		t.Errorf("a third session of a user's: %s", out)
	}
	c := connect(t)
	attach(t, c, "slim")
	_, err := c.Attach(bounded(t), "slim", dbus.AttachOptions{Command: []string{"true"}})
	if !fail.Is(err, fail.LimitsExceeded) {
		t.Errorf("a fourth session: %v", err)
	}
}

// A person without any rights types a password, once.
func TestPasswordIsAskedForOnce(t *testing.T) {
	must(t, "sh", "-c", "echo alice:open-sesame | chpasswd && usermod --append --groups sudo alice")
	t.Cleanup(func() { must(t, "sh", "-c", "usermod --lock alice && gpasswd --delete alice sudo") })
	const socket = "cntr-test"
	tmux := func(args ...string) string {
		return must(t, alice(append([]string{"tmux", "-L", socket}, args...)...)...)
	}
	tmux("new-session", "-d", "-x", "100", "-y", "40", "env PS1='here> ' sh")
	t.Cleanup(func() { tmux("kill-server") })
	screen := func(want string) string {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			text := tmux("capture-pane", "-p", "-J")
			if strings.Contains(text, want) {
				return text
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q does not come:\n%s", want, text)
			}
		}
	}
	screen("here>")
	tmux("send-keys", "cntr-attach debu sh -c 'echo I am $(id -u) in $CNTR_MACHINE; read x; echo got $x'", "Enter")
	text := screen("Password:")
	if !strings.Contains(text, "run a command in the container nspawn:debu as root") {
		t.Errorf("the question is\n%s", text)
	}
	tmux("send-keys", "open-sesame", "Enter")
	screen("I am 0 in nspawn:debu")
	tmux("send-keys", "42", "Enter") // nobody else reads from the terminal any more
	text = screen("got 42")
	if n := strings.Count(text, "Password:"); n != 1 {
		t.Errorf("%d questions for a password:\n%s", n, text)
	}
	if strings.Contains(text, "sesame") {
		t.Errorf("the password is on the screen:\n%s", text)
	}
	tmux("send-keys", "clear; cntr-attach --no-ask-password debu id", "Enter")
	screen("authentication is required: org.cntr.Attach1.attach")
	tmux("send-keys", "clear; cntr-attach debu id", "Enter")
	screen("Password:")
	tmux("send-keys", "wrong", "Enter")
	screen("not authorized: org.cntr.Attach1.attach")
}
