package session

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// machineVariables returns what of the environment of a machine's first process a command gets: the settings of
// the application, DATABASE_URL and its like.
//
// The machine decides what is in there, and the command is a tool of the host that can read the host's files: a
// variable that has a tool load, run or write something would hand those to the machine. Such variables are many
// (ld.so(8), sudoers(5) lists some), so whatever has a name like one is left out, and so is whatever cannot
// be printed on a line or is very long. What is left is text.
func machineVariables(environ []string) map[string]string {
	vars := map[string]string{}
	left := 64 << 10 // bytes
	for _, v := range environ {
		name, value, ok := strings.Cut(v, "=")
		if left -= len(v); left < 0 {
			break
		}
		if ok && isPlainName(name) && !steersTools(name) && isPlainText(value) {
			vars[name] = value
		}
	}
	return vars
}

func isPlainName(name string) bool {
	if name == "" || len(name) > 128 || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	for _, c := range []byte(name) {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func isPlainText(value string) bool {
	return len(value) <= 4096 && utf8.ValidString(value) && strings.IndexFunc(value, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// steersTools reports whether a variable has a name like those that make tools load, run or write something, or that
// tell about the place where a process runs and would be wrong in a session.
func steersTools(name string) bool {
	name = strings.ToUpper(name)
	if slices.Contains(steering.whole, name) {
		return true
	}
	for _, p := range steering.begin {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	for _, p := range steering.within {
		if strings.Contains(name, p) {
			return true
		}
	}
	return false
}

var steering = struct{ whole, begin, within []string }{
	whole: []string{
		"_", "ENV", "IFS", "PS0", "PS1", "PS2", "PS3", "PS4", "TMP", "TEMP", "USER", "LOGNAME", "MAIL", "PWD", "OLDPWD", "SHLVL",
		"STY", "COLUMNS", "LINES", "DISPLAY", "RANDFILE", "GLOBIGNORE", "NULLCMD", "READNULLCMD", "GODEBUG", "CC", "CXX", "CPP",
		"LD", "AR", "AS",
	},
	begin: []string{
		"LD_", "_RLD", "DYLD", "GLIBC_", "GCONV", "MALLOC", "RES_", "LOCALDOMAIN", "HOSTALIASES", "NLS", "LC_", "LANG", "TERM",
		"BASH", "ZSH", "KSH", "FISH", "HIST", "XDG_", "XAUTH", "XTERM", "DBUS", "SYSTEMD", "LISTEN_", "NOTIFY_", "WATCHDOG",
		"INVOCATION", "JOURNAL", "MANAGER", "CREDENTIALS", "SUDO", "SSH", "SSL", "OPENSSL", "GPG", "GNUPG", "KRB5", "TMUX",
		"SCREEN", "VIM", "LESS", "GIT", "HG", "SVN", "CVS", "GDB", "DEBUGINFOD", "STRACE", "LTRACE", "DELVE", "PERF_", "PYTHON",
		"PERL", "RUBY", "GEM", "BUNDLE", "NODE_EXTRA", "NODE_V8", "NPM", "YARN", "PIP", "UV_", "CONDA", "VIRTUAL_ENV", "JAVA",
		"_JAVA", "JDK", "MAVEN", "GRADLE", "ANT_", "LUA", "TCL", "PHP", "GUILE", "R_", "GOROOT", "GOPROXY", "GOENV", "GOBIN",
		"GOTOOL", "CARGO", "RUST", "CLANG", "GCC", "MAKE", "CMAKE", "CURL", "WGET", "PSQL", "TAR_", "GREP", "RSYNC", "CNTR",
	},
	within: []string{
		"PATH", "OPT", "LIB", "INIT", "STARTUP", "PRELOAD", "COMMAND", "EXEC", "EDITOR", "VISUAL", "PAGER", "BROWSER", "SHELL",
		"ASKPASS", "CONF", "FLAGS", "MODULE", "PLUGIN", "HOOK", "HOME", "PROMPT", "RCFILE", "DOTDIR", "TMPDIR", "SCRIPT", "ARGS",
	},
}
