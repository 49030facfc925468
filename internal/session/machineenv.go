package session

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// machineVariables returns what of the environment of a machine's first process a command gets: where the application's
// services are and who it is there, DATABASE_URL and its like.
//
// The machine decides what is in there, and the command is a tool of the host that can read the host's files: a variable
// that has a tool load, run or write something, or send the host's credentials somewhere, would hand those to the
// machine. Nobody knows all such variables (readline's INPUTRC, tar's TAPE), so only names are passed on that say where or
// who, and of these none that begin like a tool's. What is left out can be read in /proc/1/environ.
func machineVariables(environ []string) map[string]string {
	vars := map[string]string{}
	left := 64 << 10 // bytes
	for _, v := range environ {
		name, value, ok := strings.Cut(v, "=")
		if left -= len(v); left < 0 {
			break
		}
		if ok && isPlainName(name) && isTold(name) && isPlainText(value) && (name != "TZ" || isZone(value)) {
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

// isZone reports whether a time zone is named, and not a file of the machine's.
func isZone(zone string) bool {
	return !strings.HasPrefix(zone, "/") && !strings.Contains(zone, ":") && !strings.Contains(zone, "..")
}

// isTold reports whether a variable of this name is passed on.
func isTold(name string) bool {
	upper := strings.ToUpper(name)
	if slices.Contains(told.whole, upper) {
		return true
	}
	has := func(begins func(string, string) bool, list []string) bool {
		return slices.ContainsFunc(list, func(part string) bool { return begins(upper, part) })
	}
	for _, prefix := range told.begin {
		if strings.HasPrefix(name, prefix) { // in this case: CONTAINER_HOST is where Podman's client connects to
			return true
		}
	}
	return has(strings.HasSuffix, told.end) && !has(strings.HasPrefix, tools.begin) && !has(strings.Contains, tools.within)
}

// told are the names that are passed on.
var told = struct{ whole, begin, end []string }{
	whole: []string{
		"TZ", "HOSTNAME", "PORT", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH",
		"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY",
	},
	// What the managers of containers tell (systemd's container interface, Kubernetes' services).
	begin: []string{"container", "KUBERNETES_SERVICE_", "KUBERNETES_PORT"},
	end: []string{
		"_HOST", "_HOSTS", "_PORT", "_URL", "_URI", "_DSN", "_DATABASE", "_DB", "_USER", "_USERNAME", "_PASSWORD", "_PASSWD", "_ENV",
		"_ENVIRONMENT", "_VERSION", "_RELEASE", "_REGION", "_ZONE", "_BUCKET", "_PROJECT", "_TENANT", "_SERVICE", "_CLUSTER", "_NODE",
		"_NAMESPACE", "_QUEUE", "_TOPIC",
	},
}

// tools are parts of names that tools of the host go by: they would be told where to connect to with what the host's
// user has saved, what to load, or what to run.
var tools = struct{ begin, within []string }{
	begin: []string{
		"_", "LD_", "DYLD", "GLIBC", "GCONV", "MALLOC", "RES_", "NLS", "LC_", "LANG", "TERM", "BASH", "ZSH", "KSH", "FISH", "HIST", "XDG_", "XAUTH",
		"DBUS", "SYSTEMD", "LISTEN_", "NOTIFY_", "JOURNAL", "MANAGER", "CREDENTIALS", "SUDO", "SSH", "SSL", "OPENSSL", "GPG", "GNUPG", "KRB5",
		"TMUX", "SCREEN", "VIM", "LESS", "GIT", "GH_", "GL_", "HG", "SVN", "CVS", "GDB", "DEBUG", "STRACE", "LTRACE", "DELVE", "PERF_", "PYTHON",
		"PERL", "RUBY", "GEM", "BUNDLE", "NPM", "YARN", "PIP", "UV_", "CONDA", "VIRTUAL_ENV", "JAVA", "JDK", "MAVEN", "GRADLE", "ANT_", "LUA", "TCL",
		"PHP", "GO", "CARGO", "RUST", "CLANG", "GCC", "MAKE", "CMAKE", "CURL", "WGET", "PSQL", "TAR", "RSYNC", "AWS", "AZURE", "GOOGLE", "GCLOUD",
		"CLOUDSDK", "DOCKER", "BUILDKIT", "CONTAINERD", "CONTAINERS_", "CONTAINER_HOST", "CONTAINER_SSH", "PODMAN", "KUBE_", "HELM", "VAULT", "CONSUL",
		"NOMAD", "ETCD", "ANSIBLE", "TERRAFORM", "TF_", "RESTIC", "BORG", "RCLONE", "SENTRY", "CNTR",
	},
	within: []string{
		"PATH", "OPT", "LIB", "INIT", "PRELOAD", "COMMAND", "EXEC", "EDITOR", "VISUAL", "PAGER", "BROWSER", "SHELL", "ASKPASS", "CONF", "FLAGS",
		"MODULE", "PLUGIN", "HOOK", "HOME", "PROMPT", "SCRIPT", "ARGS", "REGISTRY", "REPO", "INDEX", "MIRROR", "PROXY_COMMAND", "CERT",
	},
}
