package session

import (
	"slices"
	"strings"
)

// defaultPath is for callers who have no PATH: what Debian and Fedora give root.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment returns the command's environment and the directories of its PATH: the machine's own variables, over
// them the image's, over those the caller's, and what the caller set for the command, but for the user: it is somebody of
// the machine. Where programs are and which shell to use is the image's affair.
func environment(r request, a account, machine, image []string) (env, path []string) {
	vars := machineVariables(machine)
	vars["PATH"] = defaultPath
	vars["HOME"] = a.home
	vars["SHELL"] = "/bin/sh"
	// Where tools put the sockets by which they are told what to do, in /tmp or /run else: those are the machine's,
	// and its root could type into a tmux there.
	vars["XDG_RUNTIME_DIR"] = "/" + privateDir
	vars["TMUX_TMPDIR"] = "/" + privateDir
	if r.Terminal {
		vars["TERM"] = "linux"
		// For shells that read no file that knows /etc/debian_chroot.
		mark := "$ "
		if a.uid == 0 {
			mark = "# "
		}
		vars["PS1"] = "(" + promptName(r.Info.Machine) + ") " + mark
	}
	set := func(list []string, but ...string) {
		for _, v := range list {
			if name, value, ok := strings.Cut(v, "="); ok && !slices.Contains(but, name) {
				vars[name] = value
			}
		}
	}
	set(image)
	if r.Image.isHost() {
		set(r.CallerEnv)
	} else {
		set(r.CallerEnv, "PATH", "SHELL")
	}
	set(r.Env)
	vars["USER"] = a.name
	vars["LOGNAME"] = a.name
	vars["CNTR_MACHINE"] = r.Info.Machine
	for name, value := range vars {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env, strings.Split(vars["PATH"], ":")
}
