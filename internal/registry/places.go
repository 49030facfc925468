package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// ErrBlocked is the error of an image that registries.conf keeps out.
var ErrBlocked = errors.New("registries.conf blocks it")

// registriesFiles are those of containers-registries.conf(5) that count, in the order in which they do: the user's in place of the system's,
// then what is in the directories for pieces of it.
func registriesFiles() []string {
	files := []string{"/etc/containers/registries.conf"}
	dirs := []string{"/etc/containers/registries.conf.d"}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		own := filepath.Join(home, ".config/containers/registries.conf")
		if _, err := os.Lstat(own); err == nil {
			files = []string{own}
		}
		dirs = append(dirs, own+".d")
	}
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir) // in the order of names; mostly there is none
		for _, e := range entries {
			if !e.IsDir() && strings.HasSuffix(e.Name(), ".conf") {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	return files
}

// registries is what the files say together.
type registries struct {
	Search []string `toml:"unqualified-search-registries"`
	Tables []table  `toml:"registry"`
	Old    any      `toml:"registries"` // how it was said until 2019
}

// table is what they say of the images whose names begin with the prefix.
type table struct {
	Prefix, Location  string
	Insecure, Blocked bool
	Mirrors           []mirror `toml:"mirror"`
	DigestOnly        bool     `toml:"mirror-by-digest-only"`
}

type mirror struct {
	Location string
	Insecure bool
	Pull     string `toml:"pull-from-mirror"` // empty: "all"
}

// readRegistries reads files. Those that come later have their say over those before, of the same prefix.
func readRegistries(files []string) (*registries, error) {
	all := &registries{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = all.parse(text)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return all, nil
}

// parse adds what a file says.
func (all *registries) parse(text []byte) error {
	var r registries
	if err := toml.Unmarshal(text, &r); err != nil {
		return err
	}
	if r.Old != nil {
		return errors.New("[registries] is of the first version of its format, which is not understood")
	}
	if len(r.Search) > 0 {
		all.Search = r.Search
	}
	for _, t := range r.Tables {
		t.Location = strings.TrimRight(t.Location, "/")
		if t.Prefix = strings.TrimRight(t.Prefix, "/"); t.Prefix == "" {
			t.Prefix = t.Location
		}
		wild := strings.HasPrefix(t.Prefix, "*.")
		if t.Prefix == "" || wild && strings.ContainsAny(t.Prefix, "/:@") {
			return fmt.Errorf("[[registry]] with the prefix %q and the location %q is of no image", t.Prefix, t.Location)
		}
		for i := range t.Mirrors {
			m := &t.Mirrors[i]
			if m.Location = strings.TrimRight(m.Location, "/"); m.Location == "" {
				return fmt.Errorf("a mirror of %q has no location", t.Prefix)
			}
			if !slices.Contains([]string{"", "all", "digest-only", "tag-only"}, m.Pull) {
				return fmt.Errorf("pull-from-mirror is %q for %s, which is none of its values", m.Pull, m.Location)
			}
		}
		all.Tables = append(slices.DeleteFunc(all.Tables, func(other table) bool { return other.Prefix == t.Prefix }), t)
	}
	return nil
}

// find returns the table for an image, that with the longest prefix, and how much of the name that is. nil: none.
func (all *registries) find(image string) (found *table, length int) {
	for i := range all.Tables {
		if n := begins(image, all.Tables[i].Prefix); n > 0 && (found == nil || len(all.Tables[i].Prefix) > len(found.Prefix)) {
			found, length = &all.Tables[i], n
		}
	}
	return found, length
}

// begins returns how much of the name of an image is what a prefix says, 0 if it is another's.
func begins(image, prefix string) int {
	if domain, ok := strings.CutPrefix(prefix, "*"); ok {
		host, _, _ := strings.Cut(image, "/")
		host, _, _ = strings.Cut(host, ":")
		if len(host) > len(domain) && strings.HasSuffix(host, domain) {
			return len(host)
		}
		return 0
	}
	rest, ok := strings.CutPrefix(image, prefix)
	switch {
	case !ok:
		return 0
	case rest == "" || rest[0] == '/', strings.Contains(prefix, "/") && (rest[0] == ':' || rest[0] == '@'):
		return len(prefix)
	}
	return 0
}

// place is where an image can be had.
type place struct {
	name.Reference
	insecure bool // without encryption, or with a certificate of nobody's
}

// places returns where to ask for an image: its mirrors, in their order, and then what it is said to be at itself.
func (all *registries) places(ref string, r name.Reference) ([]place, error) {
	short := strings.TrimPrefix(ref, oci.Registry)
	host, _, _ := strings.Cut(short, "/")
	if r.Context().RegistryStr() == name.DefaultRegistry && host != "docker.io" && host != name.DefaultRegistry &&
		len(all.Search) > 0 && !slices.Equal(all.Search, []string{"docker.io"}) {
		return nil, fmt.Errorf("%q does not say which registry, and registries.conf has %q for such names: name one of them", ref, all.Search)
	}
	image := scopes(r)[0]
	t, length := all.find(image)
	if t == nil {
		return []place{{r, false}}, nil
	}
	if t.Blocked {
		return nil, fmt.Errorf("%s, as %s: %w", image, t.Prefix, ErrBlocked)
	}
	at := func(location string, insecure bool) (place, error) {
		var options []name.Option
		if insecure {
			options = append(options, name.Insecure)
		}
		if location == "" {
			location = image[:length]
		}
		r, err := parse(location+image[length:], options...)
		return place{r, insecure}, err
	}
	var list []place
	_, byDigest := r.(name.Digest)
	for _, m := range t.Mirrors {
		if !byDigest && (t.DigestOnly || m.Pull == "digest-only") || byDigest && m.Pull == "tag-only" {
			continue
		}
		p, err := at(m.Location, m.Insecure)
		if err != nil {
			return nil, fmt.Errorf("registries.conf, a mirror of %s: %w", t.Prefix, err)
		}
		list = append(list, p)
	}
	p, err := at(t.Location, t.Insecure)
	if err != nil {
		return nil, fmt.Errorf("registries.conf, the location of %s: %w", t.Prefix, err)
	}
	return append(list, p), nil
}
