package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// authFiles are where credentials are looked for, the user's before the system's: as containers-auth.json(5) has it, then
// docker's. A file that is named in the environment is the only one.
func authFiles() (files []string) {
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		return []string{file}
	}
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	if runtime == "" {
		runtime = filepath.Join("/run/containers", strconv.Itoa(os.Getuid()))
	}
	home, _ := os.UserHomeDir() // without one there are no files in it
	configuration := os.Getenv("XDG_CONFIG_HOME")
	if configuration == "" {
		configuration = filepath.Join(home, ".config")
	}
	docker := os.Getenv("DOCKER_CONFIG")
	if docker == "" {
		docker = filepath.Join(home, ".docker")
	}
	for _, dir := range []string{runtime, configuration, "/etc"} {
		files = append(files, filepath.Join(dir, "containers/auth.json"))
	}
	return append(files, filepath.Join(docker, "config.json"))
}

// credentials finds those for a repository. A file may have them for it, for what it is in, or for the whole registry.
func credentials(files []string, r name.Repository) (authn.Authenticator, error) {
	registry, repository := r.RegistryStr(), r.RepositoryStr()
	var keys []string
	for at := repository; at != "."; at = filepath.Dir(at) {
		keys = append(keys, registry+"/"+at)
	}
	keys = append(keys, registry)
	if registry == name.DefaultRegistry {
		for _, key := range keys {
			keys = append(keys, strings.Replace(key, registry, "docker.io", 1))
		}
		keys = append(keys, authn.DefaultAuthKey)
	}
	for _, file := range files {
		if !filepath.IsAbs(file) {
			continue // there is no home directory
		}
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, err
		}
		auths, err := config.LoadFromReader(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("credentials in %s: %w", file, err)
		}
		for _, key := range keys {
			found, err := auths.GetAuthConfig(key)
			if err != nil {
				return nil, fmt.Errorf("credentials in %s: %w", file, err)
			}
			if found.ServerAddress = ""; found != (types.AuthConfig{}) {
				return authn.FromConfig(authn.AuthConfig{
					Username: found.Username, Password: found.Password, Auth: found.Auth,
					IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
				}), nil
			}
		}
	}
	return authn.Anonymous, nil
}
