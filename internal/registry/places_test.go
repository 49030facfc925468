package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/oci"
)

const example = `
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"

[[registry]]
prefix = "example.com/foo"
location = "internal.example.net:5000/bar/"
[[registry.mirror]]
location = "mirror.example.net/for-foo"
[[registry.mirror]]
location = "mirror.example.net/insecure"
insecure = true
pull-from-mirror = "digest-only"

[[registry]]
location = "example.com"
blocked = true

[[registry]]
prefix = "*.wild.example.com"
insecure = true

[[registry]]
prefix = "docker.io/library"
location = "hub.example.net/library"
mirror-by-digest-only = true
[[registry.mirror]]
location = "mirror.example.net/hub"

[[registry]]
prefix = "quay.io/a/b:1"
location = "quay.example.net/bb:2"

[aliases]
"debian" = "docker.io/library/debian"
`

func TestPlaces(t *testing.T) {
	all := &registries{}
	if err := all.parse([]byte(example)); err != nil {
		t.Fatal(err)
	}
	digest := "@sha256:" + strings.Repeat("0", 64)
	for ref, want := range map[string]string{
		"quay.io/a/b:3":                     "quay.io/a/b:3",
		"quay.io/a/b:1":                     "quay.example.net/bb:2",
		"quay.io/a/b:11":                    "quay.io/a/b:11",
		"example.com/foo/x:1":               "mirror.example.net/for-foo/x:1 internal.example.net:5000/bar/x:1",
		"example.com/foo:1":                 "mirror.example.net/for-foo:1 internal.example.net:5000/bar:1",
		"example.com/foo" + digest:          "mirror.example.net/for-foo" + digest + " mirror.example.net/insecure" + digest + "! internal.example.net:5000/bar" + digest,
		"example.com/foobar":                "blocked",
		"example.com/other/x":               "blocked",
		"example.com:5000/x/y":              "example.com:5000/x/y:latest",
		"a.wild.example.com/x/y":            "a.wild.example.com/x/y:latest!",
		"a.b.wild.example.com:1/x/y":        "a.b.wild.example.com:1/x/y:latest!",
		"wild.example.com/x/y":              "wild.example.com/x/y:latest",
		"debian:13":                         "hub.example.net/library/debian:13",
		"docker.io/debian":                  "hub.example.net/library/debian:latest",
		"docker.io/library/debian" + digest: "mirror.example.net/hub/debian" + digest + " hub.example.net/library/debian" + digest,
		"docker.io/me/tools":                "index.docker.io/me/tools:latest",
	} {
		r, err := parse(oci.Registry + ref)
		if err != nil {
			t.Fatal(err)
		}
		list, err := all.places(oci.Registry+ref, r)
		var got []string
		for _, p := range list {
			at := p.Name()
			if p.insecure {
				at += "!"
			}
			got = append(got, at)
		}
		if errors.Is(err, ErrBlocked) {
			got, err = []string{"blocked"}, nil
		}
		if text := strings.Join(got, " "); text != want || err != nil {
			t.Errorf("%s: %s, %v, want %s", ref, text, err, want)
		}
	}
}

// A name without a registry is the hub's only if nobody has said that such names are others'.
func TestNamesWithoutARegistry(t *testing.T) {
	for search, refused := range map[string]bool{`[]`: false, `["docker.io"]`: false, `["quay.io"]`: true, `["docker.io", "quay.io"]`: true} {
		all := &registries{}
		if err := all.parse([]byte("unqualified-search-registries = " + search)); err != nil {
			t.Fatal(err)
		}
		for ref, short := range map[string]bool{"debian": true, "me/tools": true, "docker.io/debian": false, "localhost:5000/debian": false, "quay.io/a/b": false} {
			r, err := parse(oci.Registry + ref)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := all.places(oci.Registry+ref, r); (err != nil) != (refused && short) || err != nil && !strings.Contains(err.Error(), "does not say which registry") {
				t.Errorf("%s, with %s: %v", ref, search, err)
			}
		}
	}
}

func TestBadRegistries(t *testing.T) {
	for text, want := range map[string]string{
		"[[registry]]": "is of no image", "[[registry]]\nprefix = '*.a/b'": "is of no image", "[[registry]]\nlocation = 1": "incompatible types",
		"[[registry]]\nlocation = 'a.b'\n[[registry.mirror]]":                                            "has no location",
		"[[registry]]\nlocation = 'a.b'\n[[registry.mirror]]\nlocation = 'c.d'\npull-from-mirror = 'no'": "none of its values",
		"[registries.search]\nregistries = ['a.b']":                                                      "first version",
		"[[registry": "expected",
	} {
		if err := (&registries{}).parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	all := &registries{}
	if err := all.parse([]byte("[[registry]]\nprefix = 'quay.io'\nlocation = 'quay.io/UPPER'")); err != nil {
		t.Fatal(err)
	}
	r, err := parse("quay.io/a/b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all.places("quay.io/a/b", r); err == nil || !strings.Contains(err.Error(), "the location of quay.io") {
		t.Errorf("%v", err)
	}
}

// home makes a home directory with files in .config/containers.
func home(t *testing.T, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("REGISTRY_AUTH_FILE", "/nonexistent")
	for name, text := range files {
		path := filepath.Join(dir, ".config/containers", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRegistriesFiles(t *testing.T) {
	home(t, map[string]string{
		"registries.conf":          "[[registry]]\nprefix = 'a.example'\nblocked = true\n[[registry]]\nprefix = 'b.example'\nblocked = true",
		"registries.conf.d/2.conf": "[[registry]]\nprefix = 'a.example'\nlocation = 'two.example'",
		"registries.conf.d/1.conf": "unqualified-search-registries = ['c.example']\n[[registry]]\nprefix = 'a.example'\nlocation = 'one.example'",
		"registries.conf.d/README": "[[",
	})
	files := registriesFiles()
	if slices.Contains(files, "/etc/containers/registries.conf") {
		t.Errorf("the user's file does not take the place of the system's: %q", files)
	}
	all, err := readRegistries(files)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := all.find("a.example/x")
	b, _ := all.find("b.example/x")
	if a == nil || a.Blocked || a.Location != "two.example" || b == nil || !b.Blocked || !slices.Equal(all.Search, []string{"c.example"}) {
		t.Errorf("%+v, %+v, %q", a, b, all.Search)
	}
}

// An image is had from the first of the places that has it, and comes from that one.
func TestImageOfAMirror(t *testing.T) {
	manifest, content := `{"config":{}}`, "content"
	blob := oci.Digest("sha256:" + sum(content))
	good := serve(t, manifest, nil, map[oci.Digest]string{blob: content})
	without := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(without.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	tls := httptest.NewUnstartedServer(good.Config.Handler)
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	t.Cleanup(tls.Close)
	at := func(s *httptest.Server) string {
		return strings.TrimPrefix(strings.TrimPrefix(s.URL, "https://"), "http://")
	}
	registry := func(location string, mirrors ...string) string {
		text := fmt.Sprintf("[[registry]]\nprefix = 'none.example/a'\nlocation = '%s'\n", location)
		for _, m := range mirrors {
			text += fmt.Sprintf("[[registry.mirror]]\nlocation = '%s'\n", m)
		}
		return text
	}
	for what, c := range map[string]struct{ conf, want string }{
		"the location":              {registry(at(good.Server)), ""},
		"a mirror":                  {registry("none.example/a", at(good.Server)), ""},
		"the third":                 {registry("none.example/a", at(gone), at(without), at(good.Server)), ""},
		"none of them":              {registry(at(without), at(gone)), "connection refused"},
		"a certificate of nobody's": {registry(at(tls)), "the registry says 400"}, // when it is asked without encryption, as one on this host is
		"which is let pass":         {registry(at(tls)) + "insecure = true\n", ""},
		"blocked":                   {registry(at(good.Server)) + "blocked = true\n", ErrBlocked.Error()},
	} {
		home(t, map[string]string{"registries.conf": c.conf})
		i, err := Open(context.Background(), "docker://none.example/a/tools")
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", what, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		text, _ := i.Manifest(context.Background())
		body, err := i.Blob(context.Background(), blob, 3)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if rest, err := io.ReadAll(body); string(text) != manifest || string(rest) != content[3:] || err != nil {
			t.Errorf("%s: %s, %s, %v", what, text, rest, err)
		}
		_ = body.Close()
		_ = i.Close()
	}
}

func FuzzRegistries(f *testing.F) {
	f.Add([]byte(example), "example.com/foo/x:1")
	f.Add([]byte("[[registry]]\nlocation='a.b'\nmirror=[{location='c.d/e'}]"), "a.b/x@sha256:"+strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, text []byte, ref string) {
		all := &registries{}
		r, err := parse(ref)
		if err != nil || all.parse(text) != nil {
			return
		}
		list, err := all.places(ref, r)
		if err != nil {
			return
		}
		found, n := all.find(scopes(r)[0])
		if len(list) == 0 || found != nil && (found.Blocked || n == 0) {
			t.Errorf("%s is at %v", ref, list)
		}
		for _, p := range list {
			if strings.Contains("/"+p.Context().RepositoryStr()+"/", "/../") {
				t.Errorf("%s is at %s", ref, p)
			}
		}
	})
}

// A name that is told as one reads back as one, and is found where it is said to be.
func FuzzReference(f *testing.F) {
	f.Add("docker://a/b@sha256:" + strings.Repeat("0", 64))
	f.Add("localhost:5000/x:y")
	f.Fuzz(func(t *testing.T, ref string) {
		r, err := parse(ref)
		if err != nil {
			return
		}
		if again, err := parse(r.Name()); err != nil || again.Name() != r.Name() {
			t.Errorf("%q is %s, which is %v, %v", ref, r, again, err)
		}
		if name, err := Default(ref); err != nil || name == "" || strings.ContainsAny(name, "/:@") {
			t.Errorf("%q is called %q, %v", ref, name, err)
		}
		if list := scopes(r); len(list) < 3 || begins(list[0], list[1]) == 0 {
			t.Errorf("%q is in %q", ref, list)
		}
	})
}
