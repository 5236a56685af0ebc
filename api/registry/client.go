package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/leapcell/leapcell"
)

// Client reaches a registry over the network as leapcelld and nodes do.
type Client struct {
	cred      Credentials
	attaching sync.Mutex // held while what belongs to an image is changed
}

// NewClient makes a client; it makes no call.
func NewClient(cred Credentials) *Client { return &Client{cred: cred} }

// Options are what go-containerregistry needs for a call to the registry.
func (c *Client) Options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuth(&authn.Basic{Username: c.cred.Username, Password: c.cred.Password}),
		remote.WithJobs(2),
	}
}

// Tag names repository:tag in the registry.
func (c *Client) Tag(repository, tag string) (name.Tag, error) {
	ref, err := name.NewTag(c.cred.Address+"/"+repository+":"+tag, c.nameOptions()...)
	if err != nil {
		return name.Tag{}, fmt.Errorf("registry: %w", err)
	}
	return ref, nil
}

func (c *Client) nameOptions() []name.Option {
	opts := []name.Option{name.StrictValidation}
	if c.cred.Insecure {
		opts = append(opts, name.Insecure)
	}
	return opts
}

// Resolve gives the reference with digest that repository:tag stands for at the moment, else
// [leapcell.CodeNotFound].
func (c *Client) Resolve(ctx context.Context, repository, tag string) (string, error) {
	ref, err := c.Tag(repository, tag)
	if err != nil {
		return "", err
	}
	desc, err := remote.Head(ref, c.Options(ctx)...)
	if err != nil {
		return "", c.wrap(err, "look up "+ref.Name())
	}
	return ref.Context().Digest(desc.Digest.String()).Name(), nil
}

// Image gives the image at repository:tag, else [leapcell.CodeNotFound]. Its layers are read
// when they are used.
func (c *Client) Image(ctx context.Context, repository, tag string) (v1.Image, error) {
	ref, err := c.Tag(repository, tag)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(ref, c.Options(ctx)...)
	return img, c.wrap(err, "read "+ref.Name())
}

// Push writes an image to repository:tag and gives its reference with digest. Layers that
// the registry has are not sent.
func (c *Client) Push(ctx context.Context, repository, tag string, img v1.Image) (string, error) {
	ref, err := c.Tag(repository, tag)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, c.Options(ctx)...); err != nil {
		return "", c.wrap(err, "write "+ref.Name())
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("registry: digest of %s: %w", ref.Name(), err)
	}
	return ref.Context().Digest(digest.String()).Name(), nil
}

// wrap gives err a code and words. what completes "the registry could not …".
func (c *Client) wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("registry: %s: %w", what, err)
	}
	var e *transport.Error
	if !errors.As(err, &e) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("the registry at %s does not answer: could not %s", c.cred.Address, what))
	}
	switch e.StatusCode {
	case http.StatusNotFound:
		return leapcell.Wrap(leapcell.CodeNotFound, err, "the registry could not "+what+": it is not there")
	case http.StatusUnauthorized, http.StatusForbidden:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the registry at "+c.cred.Address+" refused the credentials")
	case http.StatusInsufficientStorage:
		if len(e.Errors) > 0 {
			return leapcell.Wrap(leapcell.CodeUnavailable, err, e.Errors[0].Message)
		}
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "the registry could not "+what)
}

var folderName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// Forget removes all repositories below a folder ("{service ID}") from the registry: nothing
// can be pulled from them any more. Folders that are not there are no error.
func (r *Registry) Forget(folder string) error {
	if !folderName.MatchString(folder) { // above all no ".."
		return leapcell.Errorf(leapcell.CodeInvalid, "%q is not a folder of repositories", folder)
	}
	dir := filepath.Join(r.cfg.Dir, "docker/registry/v2/repositories", filepath.FromSlash(folder))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("registry: forget %s: %w", folder, err)
	}
	return nil
}

// Health reports whether the registry answers and takes the credentials.
func (c *Client) Health(ctx context.Context) error {
	scheme := "https"
	if c.cred.Insecure {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+c.cred.Address+"/v2/", nil)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	req.SetBasicAuth(c.cred.Username, c.cred.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return c.wrap(err, "be reached")
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return leapcell.Errorf(leapcell.CodeUnavailable, "the registry at %s answered %s", c.cred.Address, resp.Status)
	}
	return nil
}
