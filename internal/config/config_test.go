package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// lay writes files below a new root.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(text, "->"); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestImage(t *testing.T) {
	for what, c := range map[string]struct {
		files map[string]string
		want  map[string]string // by machine
	}{
		"nothing": {nil, map[string]string{"nspawn:web": ""}},
		"a default, and patterns of which the last counts": {
			map[string]string{"etc/cntr/attach.conf": `
# comment
[Attach]
Image=tools
MachineImage=web* /srv/web
MachineImage=docker:*   docker:toolbox
MachineImage=docker:plain host
`},
			map[string]string{
				"nspawn:db": "tools", "nspawn:web1": "/srv/web", "docker:web1": "docker:toolbox", "docker:plain": "host", "lxc:plain": "tools",
			},
		},
		"the first main file, all drop-ins in order": {
			map[string]string{
				"etc/cntr/attach.conf":                     "[Attach]\nImage=etc\n",
				"usr/lib/cntr/attach.conf":                 "[Attach]\nImage=lib\nMachineImage=* /lib\n",
				"usr/lib/cntr/attach.conf.d/20-b.conf":     "[Attach]\nMachineImage=b b\n",
				"run/cntr/attach.conf.d/10-a.conf":         "[Attach]\nMachineImage=a a\nMachineImage=b a\n",
				"usr/lib/cntr/attach.conf.d/10-a.conf":     "[Attach]\nMachineImage=a hidden\n",
				"usr/lib/cntr/attach.conf.d/30-c.conf":     "[Attach]\nMachineImage=c hidden\n",
				"etc/cntr/attach.conf.d/30-c.conf":         "->/dev/null",
				"etc/cntr/attach.conf.d/40-d.conf.rpmsave": "[Attach]\nImage=hidden\n",
			},
			map[string]string{"nspawn:a": "a", "nspawn:b": "b", "nspawn:c": "etc"},
		},
		"an empty assignment": {
			map[string]string{
				"etc/cntr/attach.conf":             "[Attach]\nImage=x\nMachineImage=* y\n",
				"etc/cntr/attach.conf.d/none.conf": "[Attach]\nImage=\nMachineImage=\n",
			},
			map[string]string{"nspawn:a": ""},
		},
	} {
		config, err := Load(lay(t, c.files))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for machine, want := range c.want {
			kind, name, _ := strings.Cut(machine, ":")
			if got := config.Image(kind, name); got != want {
				t.Errorf("%s: the image for %s is %q, not %q", what, machine, got, want)
			}
		}
	}
}

// The example that the packages have says what its comments say.
func TestExample(t *testing.T) {
	text, err := os.ReadFile("../../packaging/examples/attach.conf")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(lay(t, map[string]string{"etc/cntr/attach.conf": string(text)}))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Unknown) > 0 {
		t.Errorf("settings that are not known: %q", c.Unknown)
	}
	for machine, want := range map[string]string{"nspawn:web": "/srv/tools.raw", "docker:web": "docker:toolbox", "docker:build-1": "host"} {
		kind, name, _ := strings.Cut(machine, ":")
		if got := c.Image(kind, name); got != want {
			t.Errorf("%s: %q, want %q", machine, got, want)
		}
	}
}

func TestUnknownSettingsAreToldAndLeft(t *testing.T) {
	c, err := Load(lay(t, map[string]string{"etc/cntr/attach.conf": "[Attach]\nImages=x\nImage=y\n[Service]\nUser=me\n"}))
	if err != nil || len(c.Unknown) != 2 || c.Image("nspawn", "web") != "y" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestWrongConfiguration(t *testing.T) {
	for _, text := range []string{"[Attach]\nMachineImage=web\n", "[Attach]\nMachineImage=[ /x\n", "[Attach\nImage=x\n", "[Attach]\nImage\n"} {
		_, err := Load(lay(t, map[string]string{"etc/cntr/attach.conf": text}))
		if !fail.Is(err, fail.Misconfigured) || !strings.Contains(err.Error(), "/etc/cntr/attach.conf: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[Attach]\nImage=tools\nMachineImage=web* /srv/web\n"))
	f.Add([]byte("[Attach]\nImage=a\\\n  b\n;c\n[X]\nMachineImage=\n"))
	f.Add([]byte("[Attach]\nMachineImage=[a-] /x\n\x00="))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Config{}
		if c.parse("attach.conf", data) != nil {
			return
		}
		for _, r := range c.rules {
			if r.image == "" {
				t.Errorf("a rule %+v", r)
			}
		}
		c.Image("nspawn", "web")
	})
}
