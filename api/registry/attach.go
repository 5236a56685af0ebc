package registry

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/signature"
)

// MaxDocument bounds a document that belongs to an image, in bytes.
const MaxDocument = 64 << 20

// Document is one that belongs to an image: an OCI artifact whose subject is the image. The
// registry that is embedded has no API for referrers, so that they are found by the tag
// sha256-<hex> of the image, as the OCI distribution specification provides; with a registry that
// has one, that is used.
type Document struct {
	Type       string // of the artifact
	MediaType  string // of the content
	Deployment string // whose document it is; "" where that follows from the image
	Content    []byte
}

// deploymentKey is the annotation of a document's manifest that says whose it is.
const deploymentKey = "dev.leapcell.deployment"

// digestRef reads a reference with digest, as Resolve and Push give it.
func (c *Client) digestRef(image string) (name.Digest, error) {
	ref, err := name.NewDigest(image, c.nameOptions()...)
	if err != nil {
		return ref, leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository@sha256:… is needed", image)
	}
	return ref, nil
}

// At gives the image with that reference with digest, else [leapcell.CodeNotFound].
func (c *Client) At(ctx context.Context, image string) (v1.Image, error) {
	ref, err := c.digestRef(image)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(ref, c.Options(ctx)...)
	return img, c.wrap(err, "read "+ref.Name())
}

// Attach makes d a document of the image with that reference with digest. Of several callers one
// works at a time: the list of an image's documents is read and then written.
func (c *Client) Attach(ctx context.Context, image string, d Document) error {
	c.attaching.Lock()
	defer c.attaching.Unlock()
	ref, err := c.digestRef(image)
	if err != nil {
		return err
	}
	subject, err := remote.Head(ref, c.Options(ctx)...)
	if err != nil {
		return c.wrap(err, "look up "+ref.Name())
	}
	artifact, err := artifactOf(d, *subject)
	if err != nil {
		return fmt.Errorf("registry: document of %s: %w", image, err)
	}
	digest, err := artifact.Digest()
	if err != nil {
		return fmt.Errorf("registry: document of %s: %w", image, err)
	}
	at := ref.Context().Digest(digest.String())
	return c.wrap(remote.Write(at, artifact, c.Options(ctx)...), "write the document "+at.Name())
}

// artifactOf is an image with one layer. Its config has the type of the artifact: that is where
// clients look which are older than the field artifactType.
func artifactOf(d Document, subject v1.Descriptor) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.MediaType(d.Type))
	img, err := mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(d.Content, types.MediaType(d.MediaType))})
	if err != nil {
		return nil, err
	}
	if d.Deployment != "" {
		img = mutate.Annotations(img, map[string]string{deploymentKey: d.Deployment}).(v1.Image)
	}
	return mutate.Subject(img, v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest}).(v1.Image), nil
}

// Attached gives the document of that type of an image, and of a deployment unless that is "";
// [leapcell.CodeNotFound] if there is none.
func (c *Client) Attached(ctx context.Context, image, kind, deployment string) ([]byte, error) {
	ref, err := c.digestRef(image)
	if err != nil {
		return nil, err
	}
	index, err := remote.Referrers(ref, c.Options(ctx)...)
	if err != nil {
		return nil, c.wrap(err, "list the documents of "+ref.Name())
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, c.wrap(err, "list the documents of "+ref.Name())
	}
	for _, desc := range list.Manifests {
		if desc.ArtifactType != kind || deployment != "" && desc.Annotations[deploymentKey] != deployment {
			continue
		}
		at := ref.Context().Digest(desc.Digest.String())
		img, err := remote.Image(at, c.Options(ctx)...)
		if err != nil {
			return nil, c.wrap(err, "read "+at.Name())
		}
		return c.content(img, at.Name())
	}
	return nil, leapcell.Errorf(leapcell.CodeNotFound, "the image %s has no document of the type %s", ref.Name(), kind)
}

// content is that of an artifact's one layer.
func (c *Client) content(img v1.Image, what string) ([]byte, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, c.wrap(err, "read "+what)
	}
	if len(layers) != 1 {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "%s is no document: it has %d layers, not one", what, len(layers))
	}
	r, err := layers[0].Compressed()
	if err != nil {
		return nil, c.wrap(err, "read "+what)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, MaxDocument+1))
	if err != nil {
		return nil, c.wrap(err, "read "+what)
	}
	if len(b) > MaxDocument {
		return nil, leapcell.Errorf(leapcell.CodeTooLarge, "%s has more than %d MB", what, MaxDocument>>20)
	}
	return b, nil
}

// SignedBy gives the names of the keys that an image is said to be signed with.
func (c *Client) SignedBy(ctx context.Context, image string) ([]string, error) {
	_, img, err := c.signatures(ctx, image)
	if err != nil {
		return nil, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, c.wrap(err, "read the signatures of "+image)
	}
	var keys []string
	for _, l := range manifest.Layers {
		if key := l.Annotations[signature.KeyAnnotation]; key != "" && string(l.MediaType) == signature.MediaType {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// AddSignature puts a signature to those that an image has, as the first: when there are more than
// are looked at, the oldest go.
func (c *Client) AddSignature(ctx context.Context, image string, s signature.Signed) error {
	c.attaching.Lock()
	defer c.attaching.Unlock()
	at, old, err := c.signatures(ctx, image)
	if err != nil {
		return err
	}
	if _, err := c.At(ctx, image); err != nil {
		return err // nothing is signed that is not there
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	adds := []mutate.Addendum{{
		Layer:       static.NewLayer(s.Payload, signature.MediaType),
		Annotations: map[string]string{signature.Annotation: signature.Encode(s.Signature), signature.KeyAnnotation: s.Key},
	}}
	manifest, err := old.Manifest()
	if err != nil {
		return c.wrap(err, "read the signatures of "+image)
	}
	for _, desc := range manifest.Layers[:min(len(manifest.Layers), signature.MaxSignatures-1)] {
		layer, err := old.LayerByDigest(desc.Digest)
		if err != nil {
			return c.wrap(err, "read the signatures of "+image)
		}
		adds = append(adds, mutate.Addendum{Layer: layer, MediaType: desc.MediaType, Annotations: desc.Annotations})
	}
	if img, err = mutate.Append(img, adds...); err != nil {
		return fmt.Errorf("registry: signature of %s: %w", image, err)
	}
	return c.wrap(remote.Write(at, img, c.Options(ctx)...), "write "+at.Name())
}

// signatures gives the image that holds those of another, without layers if there is none, and its place.
func (c *Client) signatures(ctx context.Context, image string) (name.Tag, v1.Image, error) {
	ref, err := c.digestRef(image)
	if err != nil {
		return name.Tag{}, nil, err
	}
	at := ref.Context().Tag(signature.Tag(ref.DigestStr()))
	img, err := remote.Image(at, c.Options(ctx)...)
	if err = c.wrap(err, "read "+at.Name()); leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return at, empty.Image, nil
	}
	return at, img, err
}
