package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"runtime"
	"strings"
)

// Kinds of images, named as in containers-transports(5).
const (
	Layout        = "oci"
	Archive       = "oci-archive"
	DockerArchive = "docker-archive"
)

// IsKind reports whether images are of that kind.
func IsKind(kind string) bool { return kind == Layout || kind == Archive || kind == DockerArchive }

// Registry is what the name of an image in a registry begins with.
const Registry = "docker://"

// Digest is the name of a blob: an algorithm, a colon, and hexadecimal digits.
type Digest string

// algorithms are those that the specification has (descriptor.md).
var algorithms = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

func (d Digest) check() error {
	algorithm, digits, _ := strings.Cut(string(d), ":")
	if sum := algorithms[algorithm]; sum == nil || len(digits) != 2*sum().Size() || strings.Trim(digits, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is no sha256 or sha512 digest", string(d))
	}
	return nil
}

func (d Digest) algorithm() string {
	algorithm, _, _ := strings.Cut(string(d), ":")
	return algorithm
}

func (d Digest) hex() string {
	_, digits, _ := strings.Cut(string(d), ":")
	return digits
}

// sum returns what computes a digest to be compared with this one. It has passed check.
func (d Digest) sum() hash.Hash { return algorithms[d.algorithm()]() }

// compare compares with what was computed.
func (d Digest) compare(sum hash.Hash) error {
	if got := Digest(d.algorithm() + ":" + hex.EncodeToString(sum.Sum(nil))); got != d {
		return fmt.Errorf("is not %s but %s", d, got)
	}
	return nil
}

func digestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// descriptor is the OCI content descriptor, as much of it as matters here.
type descriptor struct {
	MediaType   string            `json:"mediaType,omitempty"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *struct {
		OS   string `json:"os"`
		Arch string `json:"architecture"`
	} `json:"platform,omitempty"`
}

func (d *descriptor) forHere() bool {
	return d.Platform == nil || d.Platform.OS == "linux" && d.Platform.Arch == runtime.GOARCH
}

// manifest is an image index or an image manifest.
type manifest struct {
	Manifests []descriptor `json:"manifests"`
	Config    *descriptor  `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// config is the image configuration.
type config struct {
	OS     string `json:"os"`
	Arch   string `json:"architecture"`
	Config struct {
		Env []string
	} `json:"config"`
	RootFS struct {
		DiffIDs []Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// layer is where a layer is and what it should be.
type layer struct {
	name   string // of the file
	blob   Digest // of that; empty: not told
	diffID Digest // of the tar file in it
	size   int64  // as the manifest has it, with
	toc    *toc   // the table of contents; nil: there is none
}

// description is an image before its layers are looked at.
type description struct {
	config config
	layers []layer
}

const refName = "org.opencontainers.image.ref.name"

// describeOCI reads what a layout says of the image with a tag; without one, of the only image.
func describeOCI(f files, tag string) (*description, error) {
	_, m, err := findManifest(f, tag)
	if err != nil {
		return nil, err
	}
	return describe(f, m)
}

// findManifest finds the manifest of an image in a layout.
func findManifest(f files, tag string) ([]byte, *manifest, error) {
	b, err := f.open("index.json")
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	data, err := b.document()
	if err != nil {
		return nil, nil, fmt.Errorf("index.json: %w", err)
	}
	for depth := 0; ; depth++ {
		m := &manifest{}
		if err := json.Unmarshal(data, m); err != nil {
			return nil, nil, fmt.Errorf("its index or manifest: %w", err)
		}
		if m.Config != nil {
			return data, m, nil
		}
		if depth == maxDepth {
			return nil, nil, fmt.Errorf("indexes are nested more than %d deep", maxDepth)
		}
		next, err := m.choose(tag, depth > 0)
		if err != nil {
			return nil, nil, err
		}
		tag = "" // the first index has them
		if data, err = verified(f, next.Digest); err != nil {
			return nil, nil, err
		}
	}
}

// choose chooses the image of an index. One for several machines may have several for this one, of which the first is the
// best (image-index.md); a layout may have different images.
func (m *manifest) choose(tag string, first bool) (*descriptor, error) {
	var found []*descriptor
	var tags []string
	for i := range m.Manifests {
		d := &m.Manifests[i]
		if name := d.Annotations[refName]; name != "" {
			tags = append(tags, name)
		}
		if d.forHere() && (tag == "" || d.Annotations[refName] == tag) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1, len(found) > 1 && first:
		return found[0], nil
	case len(found) > 1 && tag == "":
		return nil, fmt.Errorf("it has several images, of which one is to be named: %q", tags)
	case len(found) > 1:
		return nil, fmt.Errorf("several of its images are tagged %q", tag)
	case tag != "":
		return nil, fmt.Errorf("none of its images for this machine is tagged %q, but %q", tag, tags)
	}
	return nil, fmt.Errorf("it has no image for linux/%s", runtime.GOARCH)
}

func blobName(d Digest) string { return "blobs/" + d.algorithm() + "/" + d.hex() }

// Verify checks that data is what has the digest.
func (d Digest) Verify(data []byte) error {
	if err := d.check(); err != nil {
		return err
	}
	sum := d.sum()
	sum.Write(data)
	if err := d.compare(sum); err != nil {
		return fmt.Errorf("its digest %w", err)
	}
	return nil
}

// verified reads a document by its digest.
func verified(f files, d Digest) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	b, err := f.open(blobName(d))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	data, err := b.document()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	return data, d.Verify(data)
}

func describe(f files, m *manifest) (*description, error) {
	data, err := verified(f, m.Config.Digest)
	if err != nil {
		return nil, err
	}
	d := &description{}
	for _, l := range m.Layers {
		if err := l.Digest.check(); err != nil {
			return nil, err
		}
		d.layers = append(d.layers, layer{name: blobName(l.Digest), blob: l.Digest, size: l.Size, toc: l.toc()})
	}
	return d, d.configure(data)
}

// configure takes over what the configuration says.
func (d *description) configure(data []byte) error {
	if err := json.Unmarshal(data, &d.config); err != nil {
		return fmt.Errorf("its configuration: %w", err)
	}
	if c := &d.config; c.OS != "" && c.OS != "linux" || c.Arch != "" && c.Arch != runtime.GOARCH {
		return fmt.Errorf("it is for %s/%s, and this is linux/%s", c.OS, c.Arch, runtime.GOARCH)
	}
	ids := d.config.RootFS.DiffIDs
	if len(ids) != len(d.layers) || len(ids) > maxLayers {
		return fmt.Errorf("its configuration is of %d layers, and it has %d, of which up to %d will do", len(ids), len(d.layers), maxLayers)
	}
	for i, id := range ids {
		if err := id.check(); err != nil {
			return err
		}
		d.layers[i].diffID = id
	}
	return nil
}

// describeDocker reads what an archive of docker save says of the image with a name; without one, of the only image.
func describeDocker(f files, tag string) (*description, error) {
	config, layers, err := findDocker(f, tag)
	if err != nil {
		return nil, err
	}
	b, err := f.open(config)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	data, err := b.document()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	d := &description{}
	for _, name := range layers {
		d.layers = append(d.layers, layer{name: name})
	}
	return d, d.configure(data)
}

// findDocker finds the names of the configuration and the layers of an image in an archive of docker save.
func findDocker(f files, tag string) (config string, layers []string, err error) {
	b, err := f.open("manifest.json")
	if err != nil {
		return "", nil, err
	}
	defer b.Close()
	data, err := b.document()
	if err != nil {
		return "", nil, fmt.Errorf("manifest.json: %w", err)
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return "", nil, fmt.Errorf("manifest.json: %w", err)
	}
	found := -1
	for i, m := range list {
		match := tag == "" && len(list) == 1
		for _, t := range m.RepoTags {
			match = match || tag != "" && (t == tag || strings.HasSuffix(t, "/"+tag) || t == tag+":latest")
		}
		if match {
			found = i
		}
	}
	if found < 0 {
		return "", nil, fmt.Errorf("it has %d images, and none is %q", len(list), tag)
	}
	return list[found].Config, list[found].Layers, nil
}
