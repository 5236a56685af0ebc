package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

var digest = "sha256:" + strings.Repeat("ab", 32)

func publicPEM(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func newKey(t testing.TB) (*ecdsa.PrivateKey, Keys) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(publicPEM(t, &private.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return private, keys
}

func sign(t testing.TB, key *ecdsa.PrivateKey, text []byte) Signed {
	t.Helper()
	sum := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return Signed{Payload: text, Signature: sig}
}

func about(t testing.TB, digest string) []byte {
	t.Helper()
	text, err := Payload("registry.example/shop/app", digest)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSignatureCounts(t *testing.T) {
	private, keys := newKey(t)
	_, others := newKey(t)
	good := sign(t, private, about(t, digest))
	if id, err := keys.Of(digest, []Signed{good}); err != nil || id != keys[0].ID {
		t.Errorf("%q, %v", id, err)
	}
	// One of several keys, and one of several signatures, is enough.
	both := append(append(Keys{}, others...), keys...)
	if id, err := both.Of(digest, []Signed{sign(t, private, []byte("{}")), good}); err != nil || id != keys[0].ID {
		t.Errorf("%q, %v", id, err)
	}
	flipped := Signed{Payload: bytes.Clone(good.Payload), Signature: bytes.Clone(good.Signature)}
	flipped.Payload[len(flipped.Payload)-3] ^= 1
	for name, tt := range map[string]struct {
		keys Keys
		all  []Signed
		want string
	}{
		"none":             {keys, nil, "no signature"},
		"wrong key":        {others, []Signed{good}, "by another key"},
		"another image":    {keys, []Signed{sign(t, private, about(t, "sha256:"+strings.Repeat("cd", 32)))}, "another image, sha256:cdcd"},
		"tampered payload": {keys, []Signed{flipped}, "or broken"},
		"cut signature":    {keys, []Signed{{good.Payload, good.Signature[:20], ""}}, "or broken"},
		"cut payload":      {keys, []Signed{{good.Payload[:40], good.Signature, ""}}, "or broken"},
		"signed nonsense":  {keys, []Signed{sign(t, private, []byte("nonsense"))}, "not the JSON"},
		"signed, huge":     {keys, []Signed{sign(t, private, bytes.Repeat([]byte(" "), MaxPayload+1))}, "more than 65536"},
		"of another type":  {keys, []Signed{sign(t, private, bytes.Replace(about(t, digest), []byte("image signature"), []byte("image recipe"), 1))}, "not of an image"},
		"two documents":    {keys, []Signed{sign(t, private, append(about(t, digest), "{}"...))}, "goes on"},
		"no digest":        {keys, []Signed{sign(t, private, about(t, "sha256:12"))}, `"sha256:12"`},
	} {
		if id, err := tt.keys.Of(digest, tt.all); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q, %v; want %q", name, id, err, tt.want)
		}
	}
}

func TestEd25519(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(publicPEM(t, public))
	if err != nil {
		t.Fatal(err)
	}
	text := about(t, digest)
	if _, err := keys.Of(digest, []Signed{{Payload: text, Signature: ed25519.Sign(private, text)}}); err != nil {
		t.Error(err)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"empty":   {"", "no public key"},
		"private": {"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "EC PRIVATE KEY"},
		"broken":  {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "public key 1 cannot be read"},
		"rsa":     {string(publicPEM(t, &strong.PublicKey)), "ECDSA and Ed25519"},
	} {
		if _, err := ParseKeys([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, err := Payload("registry.example/shop/app", digest)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"critical":{"image":{"docker-manifest-digest":"sha256:"},"type":"cosign container image signature"}}`))
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := Parse(text)
		if err == nil && (len(got) != len(digest) || !strings.HasPrefix(got, "sha256:")) {
			t.Errorf("%q gave %q", text, got)
		}
	})
}
