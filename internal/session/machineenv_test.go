package session

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMachineVariables(t *testing.T) {
	kept := []string{
		"DATABASE_URL=postgres://db:5432/app?sslmode=disable", "PORT=80", "TZ=Europe/Berlin", "NODE_ENV=production",
		"container=docker", "container_host_id=debian", "KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_PORT_443_TCP_ADDR=10.0.0.1",
		"http_proxy=http://10.0.0.2:3128", "APP_ENV=grüß dich", "SMTP_HOST=", "POSTGRES_PASSWORD=a=b", "REDIS_HOST=r", "S3_BUCKET=x",
		"PGHOST=/run/postgresql", "AMQP_URI=amqp://mq", "HTTPS_PROXY=http://10.0.0.2:3128", "WEB_PORT_80_TCP_PORT=80", "HOSTNAME=web",
	}
	dropped := []string{
		"LD_PRELOAD=/tmp/x.so", "LD_LIBRARY_PATH=/tmp", "LD_AUDIT=x", "ld_preload=x", "PATH=/tmp", "BASH_ENV=/tmp/x", "ENV=/tmp/x",
		"BASH_FUNC_ls%%=() { id; }", "PROMPT_COMMAND=id", "PS1=$(id)", "PS4=$(id)", "IFS=/", "PYTHONSTARTUP=/tmp/x.py",
		"PYTHONWARNINGS=x", "PERL5OPT=-Mx", "RUBYOPT=-rx", "NODE_OPTIONS=--require=/tmp/x", "JAVA_TOOL_OPTIONS=-javaagent:x",
		"_JAVA_OPTIONS=x", "GIT_SSH_COMMAND=id", "GIT_EXTERNAL_DIFF=id", "LESSOPEN=|id", "LESS=+!id", "PAGER=id", "MANPAGER=id",
		"EDITOR=id", "VISUAL=id", "VIMINIT=:!id", "EXINIT=!id", "GCONV_PATH=/tmp", "LOCPATH=/tmp", "OPENSSL_CONF=/tmp/x",
		"SSLKEYLOGFILE=/x", "CURL_HOME=/tmp", "GNUPGHOME=/tmp", "KRB5_CONFIG=/tmp/x", "TERMINFO=/tmp", "HISTFILE=/tmp/x",
		"HOME=/tmp", "SHELL=/tmp/sh", "TMUX=/tmp/x", "SSH_AUTH_SOCK=/tmp/x", "GLIBC_TUNABLES=x", "MAKEFLAGS=--eval=x",
		"DEBUGINFOD_URLS=http://x", "LUA_INIT=x", "ZDOTDIR=/tmp", "RSYNC_RSH=id", "BROWSER=id", "GDBHISTFILE=/x", "TAR_OPTIONS=x",
		"INPUTRC=/tmp/x", "TAPE=x:/tmp", "FCEDIT=id", "MANROFFOPT=x", "CDPATH=/tmp", "PGPASSFILE=/tmp/x", "PGSERVICEFILE=/tmp/x", "CORECLR_PROFILER=x",
		"CONTAINER_HOST=ssh://x", "DOCKER_HOST=ssh://x", "VAULT_ADDR=http://x", "AWS_ENDPOINT_URL=http://x", "KUBERNETES_MASTER=http://x",
		"PIP_INDEX_URL=http://x", "npm_config_registry=http://x", "SSH_HOST=x", "GIT_PROXY_COMMAND=id", "RES_HOST=x", "ALL_OPTIONS_URL=x",
		"TZ=:/tmp/x", "TZ=/tmp/x", "TZ=../tmp/x", "GREETING=hello", "DEBUG=1", "A=b",
		"CNTR_MACHINE=other", "NOTIFY_SOCKET=/x", "LISTEN_FDS=3", "XDG_CONFIG_HOME=/tmp", "SUDO_ASKPASS=/x", "GODEBUG=x",
		"NEWLINE=a\nLD_PRELOAD=x", "ESCAPE=\x1b]0;x\a", "LATIN=\xff", "RIGHT_TO_LEFT=\u202e", "9NAME=x", "A B=x", "A-B=x", "=x", "novalue",
		"LONG=" + strings.Repeat("x", 5000), strings.Repeat("N", 200) + "=x",
	}
	got := machineVariables(append(slices.Clone(dropped), kept...))
	for _, v := range kept {
		if name, value, _ := strings.Cut(v, "="); got[name] != value {
			t.Errorf("%q is not passed on", v)
		} else if _, ok := got[name]; !ok {
			t.Errorf("%q is not passed on", v)
		}
		delete(got, v[:strings.IndexByte(v, '=')])
	}
	if len(got) != 0 {
		t.Errorf("passed on: %q", slices.Sorted(maps.Keys(got)))
	}
}

func TestMachineVariablesAreBounded(t *testing.T) {
	var many []string
	for i := range 1000 {
		many = append(many, "N"+strings.Repeat("A", i%100)+"_URL="+strings.Repeat("x", 1000))
	}
	size := 0
	for name, value := range machineVariables(many) {
		size += len(name) + len(value) + 1
	}
	if size == 0 || size > 64<<10 {
		t.Errorf("%d bytes are passed on", size)
	}
}

func FuzzMachineVariables(f *testing.F) {
	f.Add("A=b")
	f.Add("LD_PRELOAD=x")
	f.Fuzz(func(t *testing.T, v string) {
		for name, value := range machineVariables([]string{v}) {
			if name+"="+value != v || strings.ContainsAny(v, "\x00\n\r\x1b") || !utf8.ValidString(v) || strings.HasPrefix(name, "LD_") {
				t.Errorf("%q became %q=%q", v, name, value)
			}
		}
	})
}
