package registry

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cntr-attach/cntr-attach/internal/oci"
)

func TestDefaultNames(t *testing.T) {
	for ref, want := range map[string]string{
		"docker://debian": "debian", "docker://docker.io/library/debian:13": "debian-13", "docker://localhost:5000/a/b/tools": "tools",
		"docker://quay.io/a/tools:v1.2_3": "tools-v1.2_3", "docker://a/b@sha256:" + strings.Repeat("0", 64): "b",
	} {
		got, err := Default(ref)
		if err != nil || got != want || oci.CheckName(got) != nil {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"docker://", "docker://UPPER/x", "docker://a/../b", "docker:////", "docker://a/./b", "docker://a//b", "docker://a b", "docker://x@sha256:0", "docker://localhost/x"} {
		if got, err := Default(ref); err == nil {
			t.Errorf("%s: %q", ref, got)
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPolicy(t *testing.T) {
	const accept, reject = `[{"type":"insecureAcceptAnything"}]`, `[{"type":"reject"}]`
	policy := write(t, `{"default":`+reject+`,"transports":{"docker-daemon":{"":`+accept+`},"docker":{"docker.io/library":`+accept+`,
		"docker.io/library/bad":`+reject+`,"docker.io/library/bad:good":`+accept+`,"quay.io":[{"type":"signedBy","keyType":"GPGKeys"}],
		"*.example.com":`+accept+`,"localhost:5000":[]}}}`)
	for ref, want := range map[string]bool{
		"debian": true, "docker.io/debian:13": true, "bad": false, "bad:good": true, "docker.io/other/xx": false, "quay.io/a/b": false,
		"a.example.com/xx": true, "a.b.example.com:5000/xx": true, "example.com/xx": false, "localhost:5000/xx": false,
	} {
		r, err := parse(ref)
		if err != nil {
			t.Fatal(err)
		}
		err = permitted([]string{"/nonexistent", policy}, r)
		if (err == nil) != want || err != nil && !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", ref, err)
		}
		if err := permitted([]string{"/nonexistent"}, r); err != nil {
			t.Errorf("without a policy: %v", err)
		}
		if err := permitted([]string{write(t, `{"default":`)}, r); err == nil {
			t.Error("a policy that is none lets all in")
		}
	}
}

func TestCredentials(t *testing.T) {
	auth := func(key, user string) string {
		return fmt.Sprintf(`"%s":{"auth":"%s"}`, key, base64.StdEncoding.EncodeToString([]byte(user+":secret")))
	}
	first := write(t, `{"auths":{`+auth("quay.io/a", "space")+","+auth("quay.io", "quay")+`}}`)
	second := write(t, `{"auths":{`+auth("https://index.docker.io/v1/", "hub")+","+auth("quay.io/b", "later")+","+auth("localhost:5000", "local")+`}}`)
	for ref, want := range map[string]string{
		"quay.io/a/xx": "space", "quay.io/c/xx": "quay", "quay.io/b/xx": "quay", "debian": "hub", "localhost:5000/xx": "local", "ghcr.io/xx": "",
	} {
		r, err := parse(ref)
		if err != nil {
			t.Fatal(err)
		}
		found, err := credentials([]string{"", "/nonexistent", first, second}, r.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := found.Authorization()
		if err != nil || got.Username != want || want != "" && got.Password != "secret" {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
	}
	t.Setenv("HOME", "/home/x")
	for _, name := range []string{"REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"} {
		t.Setenv(name, "")
	}
	want := fmt.Sprintf("/run/containers/%d/containers/auth.json /home/x/.config/containers/auth.json /etc/containers/auth.json /home/x/.docker/config.json", os.Getuid())
	if got := strings.Join(authFiles(), " "); got != want {
		t.Errorf("credentials are looked for in %s", got)
	}
	t.Setenv("REGISTRY_AUTH_FILE", "/only")
	if got := authFiles(); len(got) != 1 || got[0] != "/only" {
		t.Errorf("%q", got)
	}
}

// registry is a server that has one image, and breaks rules if told to.
type registry struct {
	*httptest.Server
	noRange bool
	asked   []string
}

func serve(t *testing.T, index string, manifests map[string]string, blobs map[oci.Digest]string) *registry {
	t.Helper()
	r := &registry{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.asked = append(r.asked, q.URL.Path)
		what := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
		switch {
		case q.URL.Path == "/v2/":
		case strings.HasPrefix(q.URL.Path, "/v2/tools/manifests/"):
			text, ok := manifests[what]
			if what == "latest" {
				text, ok = index, true
			}
			if !ok {
				http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
				return
			}
			_, _ = io.WriteString(w, text)
		case strings.HasPrefix(q.URL.Path, "/v2/tools/blobs/") && !r.noRange:
			http.ServeContent(w, q, "", modified, strings.NewReader(blobs[oci.Digest(what)]))
		case strings.HasPrefix(q.URL.Path, "/v2/tools/blobs/"):
			_, _ = io.WriteString(w, blobs[oci.Digest(what)])
		default:
			http.NotFound(w, q)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *registry) open(t *testing.T, name string) (*Image, error) {
	t.Helper()
	i, err := Open(context.Background(), oci.Registry+strings.TrimPrefix(r.URL, "http://")+"/"+name)
	if err == nil {
		t.Cleanup(func() { _ = i.Close() })
	}
	return i, err
}

func TestImageOfARegistry(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("REGISTRY_AUTH_FILE", "/nonexistent")
	manifest := `{"config":{}}`
	digest := "sha256:" + sum(manifest)
	index := fmt.Sprintf(`{"manifests":[{"digest":"sha256:%064d","platform":{"os":"linux","architecture":"s390"}},
		{"digest":"%s","platform":{"os":"linux","architecture":"%s"}}]}`, 0, digest, runtime.GOARCH)
	blob := oci.Digest("sha256:" + sum("0123456789"))
	r := serve(t, index, map[string]string{digest: manifest, "lies": "lies", "sha256:" + sum("x"): "y"}, map[oci.Digest]string{blob: "0123456789"})
	i, err := r.open(t, "tools")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := i.Manifest(context.Background()); err != nil || string(text) != manifest {
		t.Errorf("%s, %v", text, err)
	}
	for _, r.noRange = range []bool{false, true} {
		for from, want := range map[int64]string{0: "0123456789", 4: "456789"} {
			body, err := i.Blob(context.Background(), blob, from)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			_ = body.Close()
			if string(got) != want {
				t.Errorf("from %d: %q, %v", from, got, err)
			}
		}
	}
	for name, want := range map[string]string{
		"tools@sha256:" + sum("x"): "its digest is not", "tools:none": ErrDenied.Error(), "tools:lies": "its manifest",
	} {
		if _, err := r.open(t, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// What is not on this host is not fetched without encryption.
func TestPlainHTTPIsRefused(t *testing.T) {
	done := errors.New("let through")
	s := secure{roundTripper(func(*http.Request) (*http.Response, error) { return nil, done })}
	for url, want := range map[string]bool{
		"https://a/": true, "http://localhost:5000/": true, "http://127.0.0.1/": true, "http://[::1]:5/": true,
		"http://10.0.0.1/": false, "http://a/": false, "http://127.0.0.1.example.com/": false, "http://localhost.example.com/": false,
	} {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.RoundTrip(r)
		if resp != nil {
			_ = resp.Body.Close()
		}
		if errors.Is(err, done) != want {
			t.Errorf("%s: %v", url, err)
		}
	}
}

var _ oci.Source = (*Image)(nil)

var modified = time.Unix(1_000_000_000, 0)

func sum(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
