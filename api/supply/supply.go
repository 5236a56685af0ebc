package supply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/registry"
	"github.com/leapcell/leapcell/internal/signature"
)

// Registry is where images are, and what belongs to them. Images are named by reference with digest.
type Registry interface {
	At(ctx context.Context, image string) (v1.Image, error)
	Resolve(ctx context.Context, repository, tag string) (string, error)
	Attach(ctx context.Context, image string, d registry.Document) error
	// Attached gives a document of an image, else CodeNotFound.
	Attached(ctx context.Context, image, kind, deployment string) ([]byte, error)
	SignedBy(ctx context.Context, image string) ([]string, error)
	AddSignature(ctx context.Context, image string, s signature.Signed) error
}

// Signer signs; key says which key and which version of it did.
type Signer interface {
	Sign(ctx context.Context, message []byte) (signature []byte, key string, err error)
}

// Config is what [New] needs to know.
type Config struct {
	Dir      string // for what was found in layers
	Registry Registry
	Signer   Signer // nil: nothing is signed
	// Builder is the platform as provenance names it, a URI; Version is that of leapcelld.
	Builder, Version string
	Log              *slog.Logger
}

// Chain vouches for images. It is safe for concurrent use.
type Chain struct {
	cfg    Config
	layers layerCache

	mu  sync.Mutex
	key string // that signed last
}

// New makes a chain; it makes no call.
func New(cfg Config) (*Chain, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("supply: %w", err)
	}
	return &Chain{cfg: cfg, layers: layerCache{dir: cfg.Dir}}, nil
}

// Sign signs an image by the key of today, unless it is. Errors that may pass have CodeUnavailable.
func (c *Chain) Sign(ctx context.Context, image string) error {
	if c.cfg.Signer == nil {
		return nil
	}
	key, err := c.today(ctx)
	if err != nil {
		return err
	}
	by, err := c.cfg.Registry.SignedBy(ctx, image)
	if err != nil || slices.Contains(by, key) {
		return err
	}
	repository, digest, _ := strings.Cut(image, "@")
	text, err := signature.Payload(repository, digest)
	if err != nil {
		return fmt.Errorf("supply: %w", err)
	}
	sig, key, err := c.sign(ctx, text)
	if err != nil {
		return err
	}
	if err := c.cfg.Registry.AddSignature(ctx, image, signature.Signed{Payload: text, Signature: sig, Key: key}); err != nil {
		return err
	}
	c.cfg.Log.Info("image signed", "image", image, "key", key)
	return nil
}

// today is the key that signs, with its version: Vault tells with each signature, and nothing else
// that leapcelld may ask for says so.
func (c *Chain) today(ctx context.Context) (string, error) {
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	if key != "" {
		return key, nil
	}
	_, key, err := c.sign(ctx, []byte("which key is it?"))
	return key, err
}

func (c *Chain) sign(ctx context.Context, message []byte) (sig []byte, key string, err error) {
	if sig, key, err = c.cfg.Signer.Sign(ctx, message); err != nil {
		return nil, "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = key
	return sig, key, nil
}

// Types of the documents of an image.
const (
	BillType       = "application/vnd.cyclonedx+json"
	ProvenanceType = "application/vnd.in-toto+json"
	envelopeType   = "application/vnd.dsse.envelope.v1+json"
)

// Prepare reads the layers of an image, so that they are known when one that stands on it is described.
func (c *Chain) Prepare(ctx context.Context, image string) error {
	img, err := c.cfg.Registry.At(ctx, image)
	if err != nil {
		return err
	}
	_, err = c.layers.packages(ctx, img)
	return err
}

// Describe writes down what is in the image of a deployment and how it came about, unless that was done.
// What it does again, after a kill, gives the same.
func (c *Chain) Describe(ctx context.Context, dep leapcell.Deployment) error {
	bill, err := c.bill(ctx, dep)
	if err != nil {
		return err
	}
	_, err = c.cfg.Registry.Attached(ctx, dep.Image, ProvenanceType, dep.ID)
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return err
	}
	text, err := c.statement(ctx, dep, bill)
	if err != nil {
		return err
	}
	d := registry.Document{Type: ProvenanceType, MediaType: ProvenanceType, Deployment: dep.ID, Content: text}
	if c.cfg.Signer != nil {
		if d.Content, err = c.envelop(ctx, text); err != nil {
			return err
		}
		d.MediaType = envelopeType
	}
	return c.cfg.Registry.Attach(ctx, dep.Image, d)
}

// bill gives the bill of materials of a deployment's image, and makes it on first use.
func (c *Chain) bill(ctx context.Context, dep leapcell.Deployment) ([]byte, error) {
	text, err := c.cfg.Registry.Attached(ctx, dep.Image, BillType, "")
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return text, err
	}
	img, err := c.cfg.Registry.At(ctx, dep.Image)
	if err != nil {
		return nil, err
	}
	found, err := c.layers.packages(ctx, img)
	if err != nil {
		return nil, err
	}
	if text, err = billOf(dep, found); err != nil {
		return nil, err
	}
	return text, c.cfg.Registry.Attach(ctx, dep.Image, registry.Document{Type: BillType, MediaType: BillType, Content: text})
}

// Bill is the bill of materials of a deployment, as CycloneDX JSON.
func (c *Chain) Bill(ctx context.Context, dep leapcell.Deployment) ([]byte, error) {
	return c.document(ctx, dep, BillType, "", "bill of materials")
}

// Provenance says how the image of a deployment came about, as in-toto statement.
func (c *Chain) Provenance(ctx context.Context, dep leapcell.Deployment) ([]byte, error) {
	text, err := c.Envelope(ctx, dep)
	if err != nil {
		return nil, err
	}
	var e envelope
	if err := json.Unmarshal(text, &e); err == nil && len(e.Payload) > 0 {
		return e.Payload, nil
	}
	return text, nil
}

// Envelope is the provenance as it is in the registry: in a signed envelope (DSSE), if images are signed.
func (c *Chain) Envelope(ctx context.Context, dep leapcell.Deployment) ([]byte, error) {
	return c.document(ctx, dep, ProvenanceType, dep.ID, "provenance")
}

func (c *Chain) document(ctx context.Context, dep leapcell.Deployment, kind, deployment, what string) ([]byte, error) {
	switch {
	case dep.Whole():
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "the deployment %s has no %s: it is files that edges serve, without an image", dep.ID, what)
	case dep.Image == "":
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "the deployment %s has no %s: it has no image", dep.ID, what)
	}
	text, err := c.cfg.Registry.Attached(ctx, dep.Image, kind, deployment)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "the deployment %s has no %s: one is written when a deployment starts, since images are signed; deploy again", dep.ID, what)
	}
	return text, err
}

// envelope is a DSSE envelope; []byte is base64 in JSON.
type envelope struct {
	PayloadType string `json:"payloadType"`
	Payload     []byte `json:"payload"`
	Signatures  []struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	} `json:"signatures"`
}

func (c *Chain) envelop(ctx context.Context, text []byte) ([]byte, error) {
	e := envelope{PayloadType: ProvenanceType, Payload: text}
	sig, key, err := c.sign(ctx, preAuth(e.PayloadType, text))
	if err != nil {
		return nil, err
	}
	e.Signatures = append(e.Signatures, struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}{key, sig})
	return json.Marshal(e)
}

// preAuth is what a DSSE signature is over.
func preAuth(kind string, text []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(text), text)
}

var errTooMany = errors.New("the image has more packages than are written down")
