package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// policyFiles are where it is said which images may be had, the first that exists (containers-policy.json(5)).
func policyFiles() []string {
	files := []string{"/etc/containers/policy.json"}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		files = append([]string{filepath.Join(home, ".config/containers/policy.json")}, files...)
	}
	return files
}

// requirement is what an image must meet.
type requirement struct{ Type string }

// ErrPolicy is the error of an image that the policy keeps out.
var ErrPolicy = errors.New("the policy does not let it in")

// permitted checks an image against the policy. Signatures are not verified here, so what must have one is refused.
func permitted(files []string, r name.Reference) error {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var policy struct {
			Default    []requirement
			Transports map[string]map[string][]requirement
		}
		if err := json.Unmarshal(text, &policy); err != nil {
			return fmt.Errorf("the policy %s: %w", file, err)
		}
		rules := policy.Default
		for _, scope := range scopes(r) {
			if found, ok := policy.Transports["docker"][scope]; ok {
				rules = found
				break
			}
		}
		for _, rule := range rules {
			if rule.Type != "insecureAcceptAnything" {
				return fmt.Errorf("%s wants %q of %s: %w", file, rule.Type, r, ErrPolicy)
			}
		}
		if len(rules) == 0 {
			return fmt.Errorf("%s says nothing of %s: %w", file, r, ErrPolicy)
		}
		return nil
	}
	return nil
}

// scopes are the names under which a policy may speak of an image, the nearest first.
func scopes(r name.Reference) (list []string) {
	registry, repository := r.Context().RegistryStr(), r.Context().RepositoryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	mark := ":"
	if _, ok := r.(name.Digest); ok {
		mark = "@"
	}
	list = append(list, registry+"/"+repository+mark+r.Identifier())
	for at := repository; at != "."; at = filepath.Dir(at) {
		list = append(list, registry+"/"+at)
	}
	list = append(list, registry)
	host, _, _ := strings.Cut(registry, ":")
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return append(list, "")
		}
		host = parent
		list = append(list, "*."+host)
	}
}
