// Package config reads attach.conf(5), what root has decided for all who attach.
//
// Files are found as systemd finds its own (systemd.unit(5), 'drop-in'): the first attach.conf of [Dirs] counts, and over
// it all *.conf in the attach.conf.d of each, in the order of their names. Of two with the same name the one that comes
// first in Dirs counts; an empty one, or a link to /dev/null, hides the others.
//
// There is no state: the files are read when something is decided.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/cntr-attach/cntr-attach/internal/fail"
)

// Dirs are the directories that attach.conf can be in, those that come first before the others.
var Dirs = [...]string{"/etc/cntr", "/run/cntr", "/usr/local/lib/cntr", "/usr/lib/cntr"}

const name = "attach.conf"

// Config is what the files say.
type Config struct {
	image   string // default image; empty: the host
	rules   []rule
	Unknown []string // settings that mean nothing, each with its file
}

// rule is the image for the machines whose names match.
type rule struct{ pattern, image string }

// Load reads the files below root, "/". No file is as good as an empty one.
func Load(root string) (*Config, error) {
	files, err := find(root)
	if err != nil {
		return nil, unreadable(err)
	}
	c := &Config{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = c.parse(f, data)
		}
		if err != nil {
			return nil, unreadable(err)
		}
	}
	return c, nil
}

func unreadable(err error) error {
	return fail.New(fail.Misconfigured, "correct it, see man attach.conf; --image=host does without it", "the configuration is wrong: %w", err)
}

// find returns the files that count, in the order in which they do.
func find(root string) ([]string, error) {
	var files []string
	dropIns := map[string]string{}
	for _, dir := range Dirs {
		file := filepath.Join(root, dir, name)
		if _, err := os.Stat(file); err == nil && files == nil {
			files = []string{file}
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		entries, err := os.ReadDir(file + ".d")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if base := e.Name(); strings.HasSuffix(base, ".conf") && dropIns[base] == "" {
				dropIns[base] = filepath.Join(file+".d", base)
			}
		}
	}
	var names []string
	for base := range dropIns {
		names = append(names, base)
	}
	slices.Sort(names)
	for _, base := range names {
		files = append(files, dropIns[base])
	}
	return files, nil
}

// parse adds what a file says to what those before it said.
func (c *Config) parse(file string, data []byte) error {
	options, err := unit.DeserializeOptions(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, o := range options {
		switch {
		case o.Section == "Attach" && o.Name == "Image":
			c.image = o.Value
		case o.Section == "Attach" && o.Name == "MachineImage":
			if o.Value == "" {
				c.rules = nil
				continue
			}
			pattern, image, ok := strings.Cut(o.Value, " ")
			image = strings.TrimSpace(image)
			if _, err := path.Match(pattern, ""); err != nil || !ok || image == "" {
				return fmt.Errorf("%s: MachineImage=%s is not PATTERN IMAGE", file, o.Value)
			}
			c.rules = append(c.rules, rule{pattern, image})
		default:
			c.Unknown = append(c.Unknown, fmt.Sprintf("%s: [%s] %s=", file, o.Section, o.Name))
		}
	}
	return nil
}

// Image returns what is configured as the image for a machine; empty is the host. The last pattern that matches
// counts. One with a colon is matched against the typed name.
func (c *Config) Image(kind, machine string) string {
	for _, r := range slices.Backward(c.rules) {
		subject := machine
		if strings.Contains(r.pattern, ":") {
			subject = kind + ":" + machine
		}
		if ok, _ := path.Match(r.pattern, subject); ok { // it was matched before, so it is a pattern
			return r.image
		}
	}
	return c.image
}
