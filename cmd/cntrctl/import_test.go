//go:build integration

package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// registryAddress is where the test's registry is, Debian's docker-registry, which alice may use, with the password "secret".
const registryAddress = "127.0.0.1:5000"

const registryConfig = `
version: 0.1
log: {accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: DIR/registry}}
http: {addr: 127.0.0.1:5000}
auth: {htpasswd: {realm: test, path: DIR/htpasswd}}
`

// startRegistry starts it, and puts an image into it as tools:1: a shell, and a file of so many bytes in a layer of its own.
func startRegistry(t *testing.T, size int) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config.yml": strings.ReplaceAll(registryConfig, "DIR", dir),
		"htpasswd":   "alice:$2a$04$GZR3/EL/sTRYWTS7/miaGee3v9hWByH3BDJsu0nJ0NmVl60lV0Gua\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	succeeds(t, "systemd-run", "--quiet", "--unit=test-registry", "--collect", "docker-registry", "serve", filepath.Join(dir, "config.yml"))
	t.Cleanup(func() { succeeds(t, "systemctl", "stop", "test-registry.service") })
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + registryAddress + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	succeeds(t, "bash", "-ec", `exec 2>&1 >/dev/null; cd "$1"; mkdir -p root/bin more; cp /usr/bin/busybox root/bin; for n in sh cat; do ln -s busybox root/bin/$n; done
		echo hello >root/hello; head -c "$2" /dev/urandom >more/large; umoci init --layout layout; umoci new --image layout:1
		for dir in root more; do umoci insert --image layout:1 $dir /; done
		buildah pull --quiet oci:layout:1 >id; buildah push --quiet --creds alice:secret --tls-verify=false "$(cat id)" docker://`+registryAddress+`/test/tools:1 || exit
		buildah rmi "$(cat id)"`, "bash", dir, fmt.Sprint(size))
	auths := filepath.Join(dir, "auth.json")
	if err := os.WriteFile(auths, []byte(`{"auths":{"127.0.0.1:5000":{"auth":"YWxpY2U6c2VjcmV0"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REGISTRY_AUTH_FILE", auths)
	t.Cleanup(func() { _ = os.RemoveAll("/var/lib/cntr/images") })
}

// importTools imports an image of nothing as "tools".
func importTools(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	succeeds(t, "bash", "-ec", `umoci init --layout "$1/layout"; umoci new --image "$1/layout:1"; cntrctl import "oci:$1/layout:1" tools`, "bash", dir)
	t.Cleanup(func() { succeeds(t, "cntrctl", "remove", "tools") })
}

func imported() string {
	entries, _ := filepath.Glob("/var/lib/cntr/images/*/*/*") // the pattern is one
	partial, _ := filepath.Glob("/var/lib/cntr/images/partial/*")
	return fmt.Sprintf("%d blobs, %d partial", len(entries), len(partial))
}

// An image of a registry is imported, with credentials, and is an image by its name.
func TestImportFromARegistry(t *testing.T) {
	startRegistry(t, 1<<20)
	const from = "docker://" + registryAddress + "/test/tools:1"
	t.Run("without credentials", func(t *testing.T) {
		t.Setenv("REGISTRY_AUTH_FILE", "/nonexistent")
		if got := runCommand(t, nil, "cntrctl", "import", from); got.code != 1 || !strings.Contains(got.stderr, "not for you\nhint: podman login") {
			t.Errorf("%+v", got)
		}
	})
	if got := succeeds(t, "cntrctl", "import", from); got != "imported as tools-1\n" {
		t.Errorf("%q", got)
	}
	if got := succeeds(t, "cntrctl", "images", "--no-legend"); !regexp.MustCompile(`(?m)^tools-1 +oci +/var/lib/cntr/images$`).MatchString(got) {
		t.Errorf("images are %s", got)
	}
	for _, image := range []string{"tools-1", from} {
		if got := succeeds(t, "cntr-attach", "--image="+image, "slim", "sh", "-c", "cat /hello; busybox wc -c </large"); got != "hello\n1048576\n" {
			t.Errorf("%s: %q", image, got)
		}
	}
	if got := onTerminal(t, nil, "cntrctl import "+from+" again"); !strings.Contains(got, "again: 100% of ") || !strings.HasSuffix(got, "imported as again\n") {
		t.Errorf("on a terminal: %q", got)
	}
	for args, want := range map[string]string{
		"docker://" + registryAddress + "/test/none tools-2": "not for you", "docker://UPPER x": "is no name", "oci:/none x": "no such file",
		"/srv x": "cannot be imported", from + " a/b": "cannot be the name", "docker://" + registryAddress + "/other/tools:1": `"tools-1" is another, of ` + from,
	} {
		if got := runCommand(t, nil, append([]string{"cntrctl", "import"}, strings.Fields(args)...)...); got.code != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("import %s: %+v, want %q", args, got, want)
		}
	}
	succeeds(t, "cntrctl", "remove", "tools-1", "again")
	if got := runCommand(t, nil, "cntrctl", "remove", "tools-1"); got.code != 1 || !strings.Contains(got.stderr, "no image was imported as \"tools-1\"") {
		t.Errorf("%+v", got)
	}
	if got := imported(); got != "0 blobs, 0 partial" {
		t.Errorf("%s are left", got)
	}
	// The first session with it brings it, and says so.
	got := runCommand(t, nil, "cntr-attach", "--image="+from, "slim", "cat", "/hello")
	if got.stdout != "hello\n" || got.code != 0 || !strings.Contains(got.stderr, "importing "+from+", once") {
		t.Errorf("%+v", got)
	}
}

// Where an image is asked for, and whether, is up to registries.conf.
func TestImportThroughAMirror(t *testing.T) {
	startRegistry(t, 1<<20)
	home := t.TempDir()
	t.Setenv("HOME", home)
	conf := filepath.Join(home, ".config/containers/registries.conf")
	succeeds(t, "mkdir", "-p", conf+".d")
	for file, text := range map[string]string{
		conf: "[[registry]]\nprefix = 'tools.example/a'\nlocation = '127.0.0.1:1/none'\n" +
			"[[registry.mirror]]\nlocation = '" + registryAddress + "/empty'\n[[registry.mirror]]\nlocation = '" + registryAddress + "/test'\n",
		conf + ".d/10-blocked.conf": "unqualified-search-registries = ['tools.example']\n[[registry]]\nprefix = 'tools.example/a/blocked'\nblocked = true\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const from = "docker://tools.example/a/tools:1"
	if got := succeeds(t, "cntrctl", "import", from); got != "imported as tools-1\n" {
		t.Errorf("%q", got)
	}
	for _, image := range []string{"tools-1", from} {
		if got := succeeds(t, "cntr-attach", "--image="+image, "slim", "cat", "/hello"); got != "hello\n" {
			t.Errorf("%s: %q", image, got)
		}
	}
	for from, want := range map[string]string{
		"docker://tools.example/a/blocked/tools:1": "registries.conf blocks it\nhint: see man containers-registries.conf",
		"docker://tools.example/a/none:1":          "connection refused", // where it is said to be itself, after the mirrors
		"docker://tools:1":                         `does not say which registry, and registries.conf has ["tools.example"]`,
	} {
		if got := runCommand(t, nil, "cntrctl", "import", from, "x"); got.code != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("import %s: %+v, want %q", from, got, want)
		}
	}
	if err := os.WriteFile(conf, []byte("[[registry]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := runCommand(t, nil, "cntrctl", "import", from, "x"); got.code != 1 || !strings.Contains(got.stderr, conf) {
		t.Errorf("with a file that is none: %+v", got)
	}
}

// broken is a registry on a line that breaks after some bytes of each blob.
type broken struct {
	*httptest.Server
	after int64
	hang  chan struct{} // not nil: it does not break, but stops until this is closed

	mu     sync.Mutex
	ranges []string
}

func breaking(t *testing.T, after int64) *broken {
	t.Helper()
	b := &broken{after: after}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registryAddress})
	proxy.FlushInterval = -1 // what was cut off has come through
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	proxy.ModifyResponse = func(r *http.Response) error {
		if !strings.Contains(r.Request.URL.Path, "/blobs/") || r.ContentLength < after {
			return nil
		}
		b.mu.Lock()
		b.ranges = append(b.ranges, r.Request.Header.Get("Range"))
		hang, left := b.hang, b.after
		b.mu.Unlock()
		r.Body = &cut{ReadCloser: r.Body, left: left, hang: hang}
		return nil
	}
	b.Server = httptest.NewServer(proxy)
	t.Cleanup(b.Close)
	return b
}

type cut struct {
	io.ReadCloser
	left int64
	hang chan struct{}
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left == 0 {
		if c.hang != nil {
			<-c.hang
		}
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// What was fetched of an image is not fetched again: not when the line breaks, and not when the import was killed.
func TestBrokenImportGoesOn(t *testing.T) {
	startRegistry(t, 10<<20)
	line := breaking(t, 4<<20)
	host := strings.TrimPrefix(line.URL, "http://")
	auths := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(auths, []byte(`{"auths":{"`+host+`":{"auth":"YWxpY2U6c2VjcmV0"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REGISTRY_AUTH_FILE", auths)
	from := "docker://" + host + "/test/tools:1"
	succeeds(t, "cntrctl", "import", from, "one")
	line.mu.Lock()
	if len(line.ranges) != 2 || line.ranges[0] != "" || line.ranges[1] != "bytes=4194304-" {
		t.Errorf("asked for %q", line.ranges)
	}
	line.ranges, line.hang = nil, make(chan struct{})
	line.mu.Unlock()
	succeeds(t, "cntrctl", "remove", "one")
	ctx, kill := context.WithCancel(bounded(t))
	cmd := exec.CommandContext(ctx, "cntrctl", "import", from, "two")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for waiting := bounded(t); ; {
		partial, _ := filepath.Glob("/var/lib/cntr/images/partial/*") // the pattern is one
		if len(partial) == 1 {
			if info, err := os.Stat(partial[0]); err == nil && info.Size() >= 4<<20 {
				break
			}
		}
		if err := waiting.Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := runCommand(t, nil, "cntrctl", "import", from, "three"); got.code != 1 || !strings.Contains(got.stderr, "another import or removal is at work\nhint: try again") {
		t.Errorf("at the same time: %+v", got)
	}
	kill()
	_ = cmd.Wait() // it was killed
	close(line.hang)
	if got := succeeds(t, "cntrctl", "images", "--no-legend"); strings.Contains(got, "two") {
		t.Errorf("half an image is listed: %s", got)
	}
	line.mu.Lock()
	line.hang, line.ranges = nil, nil
	line.mu.Unlock()
	succeeds(t, "cntrctl", "import", from, "two")
	line.mu.Lock()
	defer line.mu.Unlock()
	if len(line.ranges) < 1 || line.ranges[0] != "bytes=4194304-" {
		t.Errorf("after it was killed: %q", line.ranges)
	}
	if got := succeeds(t, "cntr-attach", "--image=two", "slim", "sh", "-c", "busybox wc -c </large"); got != "10485760\n" {
		t.Errorf("%q", got)
	}
}

// An image whose blobs are as they should be, and which cannot be used all the same, does not stay.
func TestImportOfWhatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	succeeds(t, "bash", "-ec", `cd "$1"; mkdir in; echo x >x; tar -C in --absolute-names -cf layer.tar ../x
		umoci init --layout layout; umoci new --image layout:1; umoci raw add-layer --image layout:1 layer.tar`, "bash", dir)
	got := runCommand(t, nil, "cntrctl", "import", "oci:"+dir+"/layout", "bad")
	if got.code != 1 || !strings.Contains(got.stderr, `"../x" leads upwards`) {
		t.Errorf("%+v", got)
	}
	if got := succeeds(t, "cntrctl", "images", "--no-legend"); strings.Contains(got, "bad") || imported() != "0 blobs, 0 partial" {
		t.Errorf("left are %s, %s", got, imported())
	}
}
