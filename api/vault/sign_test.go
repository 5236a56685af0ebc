package vault

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

func TestSignWithRealVault(t *testing.T) {
	s := startVault(t)
	sealer := s.sealer(t)
	ctx := t.Context()
	signer, err := sealer.Signer("image.signing")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = signer.Sign(ctx, []byte("x"))
	wantCode(t, err, leapcell.CodeUnavailable, "has no key leapcell/image.signing", "leapcell up")
	if _, err := s.root.Logical().Write("leapcell/keys/image.signing", map[string]any{"type": "ecdsa-p256"}); err != nil {
		t.Fatal(err)
	}
	sig, key, err := signer.Sign(ctx, []byte("message"))
	if err != nil || key != "image.signing:v1" {
		t.Fatalf("%q, %v", key, err)
	}
	secret, err := s.root.Logical().Read("leapcell/keys/image.signing")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := secret.Data["keys"].(map[string]any)["1"].(map[string]any)["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM: %q", text)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("message"))
	if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], sig) {
		t.Error("the signature does not fit the public key")
	}

	t.Run("Rotation", func(t *testing.T) {
		if _, err := s.root.Logical().Write("leapcell/keys/image.signing/rotate", nil); err != nil {
			t.Fatal(err)
		}
		if _, key, err := signer.Sign(ctx, []byte("message")); err != nil || key != "image.signing:v2" {
			t.Errorf("%q, %v", key, err)
		}
		pinned, err := sealer.Signer("image.signing:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, key, err := pinned.Sign(ctx, []byte("message")); err != nil || key != "image.signing:v1" {
			t.Errorf("%q, %v", key, err)
		}
	})
	t.Run("MayNothingElse", func(t *testing.T) {
		api := sealer.api.Logical()
		for path, in := range map[string]map[string]any{
			"leapcell/keys/image.signing":        {"type": "ecdsa-p256"},
			"leapcell/keys/image.signing/config": {"deletion_allowed": true},
			"leapcell/keys/image.signing/rotate": {},
			"leapcell/verify/image.signing":      {"input": "eA==", "signature": "vault:v1:eA=="},
		} {
			if _, err := api.Write(path, in); err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("writing %s: %v", path, err)
			}
		}
		for _, path := range []string{"leapcell/keys/image.signing", "leapcell/export/signing-key/image.signing"} {
			if _, err := api.Read(path); err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("reading %s: %v", path, err)
			}
		}
		if _, err := api.Delete("leapcell/keys/image.signing"); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("deleting the key: %v", err)
		}
	})
	t.Run("Sealed", func(t *testing.T) {
		if err := s.root.Sys().Seal(); err != nil {
			t.Fatal(err)
		}
		_, _, err := signer.Sign(ctx, []byte("message"))
		wantCode(t, err, leapcell.CodeUnavailable, "Vault is sealed")
	})
}

func TestNamesOfSigningKeys(t *testing.T) {
	s := &Sealer{}
	for _, bad := range []string{"", ":1", "key:0", "key:x", "a/b", "key:-1"} {
		if _, err := s.Signer(bad); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
