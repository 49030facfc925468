// Package registry fetches images from registries (OCI distribution specification).
//
// The exchange with a registry, its tokens and the names of images are go-containerregistry's; the credentials are read by
// docker/cli's reader of auth files. What is asked for, and that it is what was asked for, is ours: blobs from where an earlier download has
// ended (Range), which no library offers across processes.
//
// It is linked to cntrctl only: a session and its client start without it.
package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// longest is how long a manifest may be, in bytes.
const longest = 8 << 20

// accepted are the types of documents that are understood.
const accepted = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"

// ErrDenied is the error of a registry that wants other credentials, or does not have the image, which many do not tell apart.
var ErrDenied = errors.New("it is not there, or not for you")

// Image is an image in a registry. It implements oci.Source.
type Image struct {
	ref      name.Reference
	client   *http.Client
	manifest []byte
}

// Default returns the name that an image gets if nobody has said another.
func Default(ref string) (string, error) {
	r, err := parse(ref)
	if err != nil {
		return "", err
	}
	repository := r.Context().RepositoryStr()
	short := repository[strings.LastIndexByte(repository, '/')+1:]
	if tag, ok := r.(name.Tag); ok && tag.TagStr() != name.DefaultTag {
		short += "-" + tag.TagStr()
	}
	return short, nil
}

func parse(ref string, options ...name.Option) (name.Reference, error) {
	ref = strings.TrimPrefix(ref, oci.Registry)
	if strings.HasPrefix(ref, "localhost/") { // which the library takes for somebody's repository at docker.io
		return nil, fmt.Errorf("%q is in no registry: one of this host is named with its port, localhost:443; what podman calls so is saved by podman save", ref)
	}
	r, err := name.ParseReference(ref, options...)
	if err == nil && slices.ContainsFunc(strings.Split(r.Context().RepositoryStr(), "/"), func(part string) bool {
		return part == "" || part == "." || part == ".."
	}) {
		err = errors.New("a part of it is none")
	}
	if err == nil && strings.Contains(r.Context().RegistryStr(), "*") { // which stands for others in policies
		err = errors.New("its registry is no host")
	}
	if err != nil {
		return nil, fmt.Errorf("%q is no name of an image in a registry: %w", ref, err)
	}
	return r, nil
}

// Open finds an image in a registry, with the credentials that there are for it: in the first of the places that registries.conf says which has
// it.
func Open(ctx context.Context, ref string) (*Image, error) {
	r, err := parse(ref)
	if err != nil {
		return nil, err
	}
	if err := permitted(policyFiles(), r); err != nil {
		return nil, err
	}
	conf, err := readRegistries(registriesFiles())
	if err != nil {
		return nil, err
	}
	places, err := conf.places(ref, r)
	if err != nil {
		return nil, err
	}
	var failed error
	for n, p := range places {
		i, err := openAt(ctx, p)
		if err == nil {
			return i, nil
		}
		if len(places) > 1 {
			err = fmt.Errorf("%s: %w", p, err)
		}
		if n > 0 {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		failed = err
	}
	return nil, failed
}

// openAt asks at one place.
func openAt(ctx context.Context, p place) (*Image, error) {
	auth, err := credentials(authFiles(), p.Context())
	if err != nil {
		return nil, err
	}
	plain, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("the HTTP client is another one")
	}
	plain = plain.Clone()
	plain.ResponseHeaderTimeout = time.Minute
	var below http.RoundTripper = secure{plain}
	if p.insecure {
		plain.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // as somebody has written down
		below = plain
	}
	t, err := transport.NewWithContext(ctx, p.Context().Registry, auth, below, []string{p.Scope(transport.PullScope)})
	if err != nil {
		return nil, explain(err)
	}
	i := &Image{ref: p.Reference, client: &http.Client{Transport: t}}
	if i.manifest, err = i.find(ctx); err != nil {
		_ = i.Close()
		return nil, err
	}
	return i, nil
}

// Close has nothing to close.
func (i *Image) Close() error { i.client.CloseIdleConnections(); return nil }

// secure refuses what is not encrypted, except on this host.
type secure struct{ http.RoundTripper }

func (s secure) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Hostname()
	ip := net.ParseIP(host)
	if r.URL.Scheme != "https" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s does not encrypt, or its certificate is none that this host knows", r.URL.Host)
	}
	return s.RoundTripper.RoundTrip(r)
}

// Manifest returns the image's manifest for this machine.
func (i *Image) Manifest(context.Context) ([]byte, error) { return i.manifest, nil }

// find asks for it.
func (i *Image) find(ctx context.Context) ([]byte, error) {
	id := i.ref.Identifier()
	for range 3 { // an index, and one in it, at most
		text, err := i.document(ctx, id)
		if err != nil {
			return nil, err
		}
		if digest := oci.Digest(id); strings.Contains(id, ":") {
			if err := digest.Verify(text); err != nil {
				return nil, err
			}
		}
		var index struct {
			Manifests []struct {
				Digest   string
				Platform struct{ OS, Architecture string }
			}
		}
		if err := json.Unmarshal(text, &index); err != nil {
			return nil, fmt.Errorf("its manifest: %w", err)
		}
		if len(index.Manifests) == 0 {
			return text, nil
		}
		id = ""
		for _, m := range index.Manifests {
			if m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH {
				id = m.Digest
				break
			}
		}
		if id == "" {
			return nil, fmt.Errorf("%s is not for linux/%s", i.ref, runtime.GOARCH)
		}
	}
	return nil, fmt.Errorf("%s is an index of indexes", i.ref)
}

func (i *Image) document(ctx context.Context, id string) ([]byte, error) {
	resp, err := i.get(ctx, "manifests", id, func(h http.Header) { h.Set("Accept", accepted) }, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, longest+1))
	if err == nil && len(text) > longest {
		err = fmt.Errorf("its manifest has more than %d bytes", longest)
	}
	return text, err
}

// Blob reads a blob from a place on. A registry that cannot begin there sends what comes before, too, which is passed over.
func (i *Image) Blob(ctx context.Context, d oci.Digest, from int64) (io.ReadCloser, error) {
	resp, err := i.get(ctx, "blobs", string(d), func(h http.Header) {
		if from > 0 {
			h.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
		}
	}, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, err
	}
	if from > 0 && resp.StatusCode == http.StatusOK {
		if _, err := io.CopyN(io.Discard, resp.Body, from); err != nil {
			_ = resp.Body.Close()
			return nil, err
		}
	}
	return resp.Body, nil
}

func (i *Image) get(ctx context.Context, what, id string, headers func(http.Header), want ...int) (*http.Response, error) {
	u := url.URL{
		Scheme: i.ref.Context().Scheme(), Host: i.ref.Context().RegistryStr(),
		Path: fmt.Sprintf("/v2/%s/%s/%s", i.ref.Context().RepositoryStr(), what, id),
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	headers(r.Header)
	resp, err := i.client.Do(r)
	if err != nil {
		return nil, explain(err)
	}
	if err := transport.CheckError(resp, want...); err != nil {
		_ = resp.Body.Close()
		return nil, explain(err)
	}
	return resp, nil
}

// explain makes one line of an error of a registry.
func explain(err error) error {
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return fmt.Errorf("the registry says %d: %w", answer.StatusCode, ErrDenied)
	}
	return fmt.Errorf("the registry says %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
}
