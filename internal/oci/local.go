package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
)

// local is an image in files of this host.
type local struct {
	files
	manifest []byte
	names    map[Digest]string // of files that are not named by their digests
}

// OpenSource opens an image in files, to be imported, with the rights of this process.
func OpenSource(kind, path, tag string) (Source, error) {
	f, err := openFiles(kind, path, OpenAsUs)
	if err != nil {
		return nil, err
	}
	l := &local{files: f, names: map[Digest]string{}}
	if kind == DockerArchive {
		err = l.describeDocker(tag)
	} else {
		l.manifest, _, err = findManifest(f, tag)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return l, nil
}

// describeDocker writes the manifest that an archive of docker save does not have.
func (l *local) describeDocker(tag string) error {
	config, layers, err := findDocker(l.files, tag)
	if err != nil {
		return err
	}
	c, err := l.digest(config, "application/vnd.oci.image.config.v1+json")
	if err != nil {
		return err
	}
	var list []descriptor
	for _, name := range layers {
		d, err := l.digest(name, "application/vnd.oci.image.layer.v1.tar")
		if err != nil {
			return err
		}
		list = append(list, d)
	}
	l.manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": c, "layers": list,
	})
	return err
}

func (l *local) digest(name, kind string) (descriptor, error) {
	b, err := l.open(name)
	if err != nil {
		return descriptor{}, err
	}
	defer b.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, b.reader()); err != nil {
		return descriptor{}, fmt.Errorf("%s: %w", name, err)
	}
	d := Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	l.names[d] = name
	return descriptor{MediaType: kind, Digest: d, Size: b.size}, nil
}

func (l *local) Manifest(context.Context) ([]byte, error) { return l.manifest, nil }

// Blob reads a blob from a place on, until the context ends.
func (l *local) Blob(ctx context.Context, d Digest, from int64) (io.ReadCloser, error) {
	name, ok := l.names[d]
	if !ok {
		name = blobName(d)
	}
	b, err := l.open(name)
	if err != nil {
		return nil, err
	}
	if from > b.size {
		b.Close()
		return nil, fmt.Errorf("%s: %w", d, fs.ErrInvalid)
	}
	return &localBlob{io.NewSectionReader(b, from, b.size-from), ctx, b}, nil
}

type localBlob struct {
	io.Reader
	ctx  context.Context
	blob *blob
}

func (b *localBlob) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.Reader.Read(p)
}

func (b *localBlob) Close() error { b.blob.Close(); return nil }
