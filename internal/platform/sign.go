package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	vault "github.com/hashicorp/vault/api"
)

// SigningKeysFile has the public keys that images of this platform are signed with, in PEM form, the
// newest first. Nodes and `cosign verify --key` read it.
func (c Config) SigningKeysFile() string { return c.path("image-signing.pub") }

// signingKey makes the key that images are signed with, unless there is one, and writes down the public
// half of each version of it that Vault still stands for. After a rotation that is how nodes learn of it.
func (p *Platform) signingKey(ctx context.Context, root *vault.Client) error {
	at := transitMount + "/keys/" + signKey
	if _, err := root.Logical().WriteWithContext(ctx, at, map[string]any{"type": "ecdsa-p256"}); err != nil {
		return fmt.Errorf("vault: making the key that images are signed with: %w", err)
	}
	secret, err := root.Logical().ReadWithContext(ctx, at)
	if err != nil || secret == nil {
		return fmt.Errorf("vault: reading the key that images are signed with: %w", errors.Join(err, errors.New("no answer")))
	}
	keys, err := publicKeys(secret.Data)
	if err != nil {
		return fmt.Errorf("vault: the key %s: %w", at, err)
	}
	if err := writeFile(p.cfg.SigningKeysFile(), keys, 0o644); err != nil {
		return fmt.Errorf("writing the public keys of images: %w", err)
	}
	return nil
}

// verifyConfig has nodes refuse images that leapcelld has not signed, unless somebody has set it otherwise.
// Without leapcelld nobody signs.
func (p *Platform) verifyConfig() (out string) {
	if p.base {
		return ""
	}
	for _, d := range [][2]string{{"verify", "require"}, {"verify_keys_file", p.cfg.SigningKeysFile()}} {
		if _, set := p.cfg.Set[driverPart+"."+d[0]]; !set {
			out += fmt.Sprintf("    %s = %s\n", d[0], hclString(d[1]))
		}
	}
	return out
}

// publicKeys are those of all versions of a key that Vault has not put aside (min_decryption_version).
func publicKeys(data map[string]any) ([]byte, error) {
	oldest := 1
	if n, ok := data["min_decryption_version"].(json.Number); ok {
		v, err := n.Int64()
		if err != nil {
			return nil, err
		}
		oldest = int(v)
	}
	all, _ := data["keys"].(map[string]any)
	var versions []int
	for name := range all {
		if v, err := strconv.Atoi(name); err == nil && v >= oldest {
			versions = append(versions, v)
		}
	}
	slices.Sort(versions)
	slices.Reverse(versions)
	var out []byte
	for _, v := range versions {
		version, _ := all[strconv.Itoa(v)].(map[string]any)
		text, _ := version["public_key"].(string)
		if text == "" {
			return nil, fmt.Errorf("version %d of it has no public half: it is of the wrong type", v)
		}
		out = append(out, text...)
		if text[len(text)-1] != '\n' {
			out = append(out, '\n')
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it has no version")
	}
	return out, nil
}
