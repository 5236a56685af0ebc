package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"github.com/leapcell/leapcell"
)

// Signer signs with one key of Vault's transit engine, which never leaves it.
type Signer struct {
	sealer  *Sealer
	key     string
	version int // 0 is the newest
}

// Signer gives a signer by the key that name means: "image.signing", or "image.signing:3" for one
// version of it. It makes no call. The key must be there; leapcelld may neither make nor read it.
func (s *Sealer) Signer(name string) (*Signer, error) {
	key, version, pinned := strings.Cut(name, ":")
	signer := &Signer{sealer: s, key: key}
	if pinned {
		n, err := strconv.Atoi(version)
		if err != nil || n < 1 {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "the signing key is %q: a name is needed, or name:version", name)
		}
		signer.version = n
	}
	if key == "" || strings.ContainsAny(key, "/?#") {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the signing key is %q: a name is needed, or name:version", name)
	}
	return signer, nil
}

// Sign signs message: over its SHA-256 and as ASN.1 for a key of the kind ECDSA, as it is for Ed25519.
// key says which one and which version of it has signed, as in "image.signing:v2".
func (s *Signer) Sign(ctx context.Context, message []byte) (signature []byte, key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in := map[string]any{
		"input": base64.StdEncoding.EncodeToString(message), "hash_algorithm": "sha2-256", "marshaling_algorithm": "asn1",
	}
	if s.version > 0 {
		in["key_version"] = s.version
	}
	secret, err := s.sealer.api.Logical().WriteWithContext(ctx, s.sealer.path("sign", s.key), in)
	if isNoKey(err) {
		return nil, "", leapcell.Wrap(leapcell.CodeUnavailable, err,
			"Vault has no key "+s.sealer.cfg.Transit+"/"+s.key+" to sign images with: `leapcell up` makes it; leapcelld --sign-key names it")
	}
	if err != nil {
		return nil, "", s.sealer.wrap(err, "sign")
	}
	text := ""
	if secret != nil {
		text, _ = secret.Data["signature"].(string)
	}
	parts := strings.SplitN(text, ":", 3) // vault:v1:base64
	if len(parts) != 3 || parts[0] != "vault" {
		return nil, "", errors.New("vault did not answer with a signature")
	}
	if signature, err = base64.StdEncoding.DecodeString(parts[2]); err != nil {
		return nil, "", errors.New("vault did not answer with a signature")
	}
	return signature, s.key + ":" + parts[1], nil
}

func isNoKey(err error) bool {
	return err != nil && strings.Contains(err.Error(), "signing key not found")
}
