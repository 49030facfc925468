//go:build integration

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/dbus"
)

// typist types into a shell of alice's, a user with few rights, on a terminal.
type typist struct {
	*testing.T
	socket string
}

func (p *typist) tmux(args ...string) string {
	p.Helper()
	args = append([]string{"setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "env", "HOME=/home/alice", "tmux", "-L", p.socket}, args...)
	out, err := exec.CommandContext(bounded(p.T), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		p.Fatalf("%q: %v, %s", args, err, out)
	}
	return string(out)
}

// see waits until the screen shows something.
func (p *typist) see(want string) {
	p.Helper()
	for deadline := time.Now().Add(patience); ; {
		text := p.tmux("capture-pane", "-p", "-J")
		if strings.Contains(text, want) {
			return
		}
		if time.Now().After(deadline) {
			p.Errorf("%q does not come:\n%s", want, strings.TrimSpace(text))
			return
		}
	}
}

// complete types a line and the tab key, and something after that, and wants to see another.
func (p *typist) complete(line, after, want string) {
	p.Helper()
	p.tmux("send-keys", "-l", line)
	p.tmux("send-keys", "Tab")
	if after != "" {
		p.tmux("send-keys", "-l", after)
	}
	p.see("> " + want)
	p.clear()
}

// clear empties the line and the screen. A key is lost if the shell runs a program just then, for its completions or its prompt: the terminal
// is that program's meanwhile. So it is pressed again, as people do.
func (p *typist) clear() {
	p.Helper()
	text := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		p.tmux("send-keys", "C-c")
		p.tmux("send-keys", "C-l")
		for again := time.Now().Add(2 * time.Second); time.Now().Before(again); {
			if text = strings.TrimSpace(p.tmux("capture-pane", "-p", "-J")); text == "here>" {
				return
			}
		}
	}
	p.Fatalf("this stays:\n%s", text)
}

// allowed lets alice see what machines and sessions there are.
func allowed(t *testing.T) {
	t.Helper()
	const rules = "/etc/polkit-1/rules.d/10-cntr-completion.rules"
	restart := func() {
		t.Helper()
		_ = exec.Command("systemctl", "reset-failed", "polkit").Run() // for its limit on starts; fails if it is not loaded
		succeeds(t, "systemctl", "restart", "polkit")
	}
	if err := os.WriteFile(rules, []byte("polkit.addRule(function(action, subject) {\n"+
		"if (subject.user == 'alice' && action.id == 'org.cntr.Attach1.inspect') return polkit.Result.YES; });\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	restart()
	t.Cleanup(func() {
		_ = os.Remove(rules)
		restart()
	})
}

// Shells complete machines, sessions and options, for users who need not be root.
func TestShellsComplete(t *testing.T) {
	s := start(t, "slim", dbus.AttachOptions{})
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // for alice
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"bashrc": "PS1='here> '\n. /usr/share/bash-completion/bash_completion\n",
		".zshrc": "PS1='here> '\nautoload -Uz compinit\ncompinit -u -D\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shells := map[string]string{
		"bash": "bash --rcfile " + dir + "/bashrc",
		"zsh":  "env ZDOTDIR=" + dir + " zsh",
		"fish": `fish --init-command 'function fish_prompt; echo -n "here> "; end; set -g fish_greeting; set -g fish_autosuggestion_enabled 0'`,
	}
	each := func(t *testing.T, try func(p *typist, shell string)) {
		for shell, command := range shells {
			t.Run(shell, func(t *testing.T) {
				p := &typist{t, "cntr-" + shell}
				p.tmux("new-session", "-d", "-x", "120", "-y", "40", command)
				t.Cleanup(func() { p.tmux("kill-server") })
				p.see("here>")
				try(p, shell)
			})
		}
	}
	t.Run("without rights", func(t *testing.T) {
		each(t, func(p *typist, _ string) {
			p.complete("cntr-attach sl", "X", "cntr-attach slX")
			p.complete("cntrctl terminate "+s.ID[:4], "X", "cntrctl terminate "+s.ID[:4]+"X")
			p.complete("cntr-attach --wri", "", "cntr-attach --writable")
			p.complete("cntrctl term", "", "cntrctl terminate")
		})
	})
	t.Run("who may look", func(t *testing.T) {
		allowed(t)
		importTools(t)
		each(t, func(p *typist, _ string) {
			p.complete("cntr-attach sl", "X", "cntr-attach slim X")
			p.complete("cntr-attach nspawn:sl", "X", "cntr-attach nspawn:slim X")
			p.complete("cntr-attach --writable -u root sl", "X", "cntr-attach --writable -u root slim X")
			p.complete("cntr-attach slim busct", "", "cntr-attach slim busctl")
			p.complete("cntr-attach --stri", "", "cntr-attach --strict")
			p.complete("cntr-attach -p TasksM", "1", "cntr-attach -p TasksMax=1")
			for _, command := range []string{"status", "terminate", "kill"} {
				p.complete("cntrctl "+command+" "+s.ID[:5], "X", "cntrctl "+command+" "+s.ID+" X")
			}
			p.complete("cntrctl mon", "", "cntrctl monitor")
			p.complete("cntrctl imp", "", "cntrctl import")
			p.complete("cntrctl remove too", "X", "cntrctl remove tools X")
			p.complete("cntr-attach --image=too", "", "cntr-attach --image=tools")
			p.complete("cntrctl --no-leg", "", "cntrctl --no-legend")
		})
	})
}
