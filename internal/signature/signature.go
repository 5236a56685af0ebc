package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/leapcell/leapcell"
)

const (
	// MediaType is that of the layer that holds a payload.
	MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	// Annotation of such a layer is the signature, in base64.
	Annotation = "dev.cosignproject.cosign/signature"
	// KeyAnnotation says, for us alone, which key signed: "image.signing:v2". Nobody trusts it.
	KeyAnnotation = "dev.leapcell.signing-key"

	// MaxPayload and MaxSignatures bound what is read of a signature, in bytes and number.
	// A payload has some 300 bytes; an image is signed once for each key that there was.
	MaxPayload    = 64 << 10
	MaxSignatures = 32

	// kind is what cosign calls a payload.
	kind = "cosign container image signature"
)

// Signed is one signature of an image.
type Signed struct {
	Payload   []byte
	Signature []byte
	Key       string // what KeyAnnotation says
}

// payload is the document that is signed, as https://github.com/containers/image describes it.
type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// Tag is where the signatures of the image with that digest ("sha256:…") are, in its repository.
func Tag(digest string) string { return strings.Replace(digest, ":", "-", 1) + ".sig" }

// Payload is what is signed of an image: repository ("host:port/name") and digest.
func Payload(repository, digest string) ([]byte, error) {
	var p payload
	p.Critical.Identity.Reference, p.Critical.Image.Digest, p.Critical.Type = repository, digest, kind
	return json.Marshal(p)
}

// Parse gives the digest that a payload is about.
func Parse(text []byte) (digest string, err error) {
	if len(text) > MaxPayload {
		return "", fmt.Errorf("the payload has %d bytes, more than %d", len(text), MaxPayload)
	}
	var p payload
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&p); err != nil {
		return "", errors.New("the payload is not the JSON of a signature")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("the payload goes on after its end")
	}
	if p.Critical.Type != kind {
		return "", fmt.Errorf("the payload is of the type %.60q, not of an image", p.Critical.Type)
	}
	hexes, ok := strings.CutPrefix(p.Critical.Image.Digest, "sha256:")
	if raw, err := hex.DecodeString(hexes); !ok || err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("the payload names the digest %.90q", p.Critical.Image.Digest)
	}
	return p.Critical.Image.Digest, nil
}

// Decode reads the annotation of a layer.
func Decode(annotation string) ([]byte, error) {
	if len(annotation) > MaxPayload {
		return nil, errors.New("the signature is too long")
	}
	return base64.StdEncoding.DecodeString(annotation)
}

// Encode is the annotation of a signature.
func Encode(signature []byte) string { return base64.StdEncoding.EncodeToString(signature) }

// Keys are those whose signatures count.
type Keys []Key

// Key is a public key; ID is the SHA-256 of its DER form.
type Key struct {
	ID     string
	public crypto.PublicKey
}

// ParseKeys reads public keys in PEM form, one after the other: ECDSA and Ed25519.
func ParseKeys(text []byte) (Keys, error) {
	var keys Keys
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "there is a %s where only public keys (PUBLIC KEY in PEM form) are expected", block.Type)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "public key %d cannot be read: %w", len(keys)+1, err)
		}
		switch public.(type) {
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "public key %d is a %T: ECDSA and Ed25519 are known", len(keys)+1, public)
		}
		sum := sha256.Sum256(block.Bytes)
		keys = append(keys, Key{ID: hex.EncodeToString(sum[:]), public: public})
	}
	if len(keys) == 0 {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "there is no public key in PEM form")
	}
	return keys, nil
}

// Has reports whether the key with that ID is among them.
func (keys Keys) Has(id string) bool {
	for _, k := range keys {
		if k.ID == id {
			return true
		}
	}
	return false
}

// Verify gives the ID of the key that signed the message; ok says whether there is one.
func (keys Keys) Verify(message, signature []byte) (id string, ok bool) {
	sum := sha256.Sum256(message)
	for _, k := range keys {
		switch public := k.public.(type) {
		case *ecdsa.PublicKey:
			ok = ecdsa.VerifyASN1(public, sum[:], signature)
		case ed25519.PublicKey:
			ok = ed25519.Verify(public, message, signature)
		}
		if ok {
			return k.ID, true
		}
	}
	return "", false
}

// Of looks for a signature of the image with that digest by one of the keys and gives the key's
// ID, else why there is none. Nothing of a payload is believed before its signature was checked.
func (keys Keys) Of(digest string, all []Signed) (id string, err error) {
	why := errors.New("it has no signature")
	for _, s := range all {
		id, ok := keys.Verify(s.Payload, s.Signature)
		if !ok {
			why = errors.New("its signature is by another key, or broken")
			continue
		}
		about, err := Parse(s.Payload)
		if err != nil {
			why = err
			continue
		}
		if about == digest {
			return id, nil
		}
		why = fmt.Errorf("its signature is that of another image, %s", about)
	}
	return "", why
}
