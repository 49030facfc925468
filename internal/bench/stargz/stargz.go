// Package stargz makes eStargz images for tests and measurements: no tool that Debian has does.
package stargz

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// descriptor is the OCI content descriptor, as much of it as matters here.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func blob(layout, digest string) string {
	return filepath.Join(layout, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
}

// read reads a JSON text.
func read(path string, v any) error {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	return err
}

// write writes a JSON text as a blob.
func write(layout, kind string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(data)
	d := descriptor{MediaType: kind, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(data))}
	return d, os.WriteFile(blob(layout, d.Digest), data, 0o644)
}

// Convert makes a layout directory with the only image of another one, in eStargz layers, tagged "latest".
func Convert(from, to string) error {
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	var config map[string]any
	if err := read(filepath.Join(from, "index.json"), &index); err != nil {
		return err
	}
	if len(index.Manifests) != 1 {
		return fmt.Errorf("%s has %d images", from, len(index.Manifests))
	}
	if err := read(blob(from, index.Manifests[0].Digest), &manifest); err != nil {
		return err
	}
	if err := read(blob(from, manifest.Config.Digest), &config); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(to, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	var ids []string
	for n := range manifest.Layers {
		l := &manifest.Layers[n]
		id, err := convert(from, to, l)
		if err != nil {
			return fmt.Errorf("layer %d: %w", n+1, err)
		}
		ids = append(ids, id)
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": ids}
	c, err := write(to, manifest.Config.MediaType, config)
	if err != nil {
		return err
	}
	m, err := write(to, "application/vnd.oci.image.manifest.v1+json", map[string]any{"schemaVersion": 2, "config": c, "layers": manifest.Layers})
	if err != nil {
		return err
	}
	m.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	text, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{m}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, "index.json"), text, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// convert makes an eStargz layer of a layer, and returns the digest of the tar file in it.
func convert(from, to string, l *descriptor) (id string, err error) {
	in, err := os.Open(blob(from, l.Digest))
	if err != nil {
		return "", err
	}
	defer in.Close()
	b, err := estargz.Build(io.NewSectionReader(in, 0, l.Size))
	if err != nil {
		return "", err
	}
	defer b.Close()
	out, err := os.CreateTemp(to, "layer")
	if err != nil {
		return "", err
	}
	defer out.Close()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(out, sum), b)
	if err != nil {
		return "", err
	}
	if err := b.Close(); err != nil { // only then there is a digest of all of it
		return "", err
	}
	*l = descriptor{
		MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: size,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: b.TOCDigest().String()},
	}
	return b.DiffID().String(), os.Rename(out.Name(), blob(to, l.Digest))
}
