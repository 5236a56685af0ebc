package edge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/traefik/traefik/v3/pkg/tls"
	"github.com/traefik/traefik/v3/pkg/types"
)

// defaultCertificate is what TLS visitors of a name without a certificate get. It is kept
// in dir, so that who accepted it once need not do so again after a restart.
func defaultCertificate(dir string) (tls.Certificate, error) {
	if dir == "" {
		cert, key, err := newCertificate()
		return tls.Certificate{CertFile: types.FileOrContent(cert), KeyFile: types.FileOrContent(key)}, err
	}
	certFile, keyFile := filepath.Join(dir, "default.crt"), filepath.Join(dir, "default.key")
	out := tls.Certificate{CertFile: types.FileOrContent(certFile), KeyFile: types.FileOrContent(keyFile)}
	if _, err := os.Stat(certFile); err == nil {
		return out, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("default certificate: %w", err)
	}
	cert, key, err := newCertificate()
	if err != nil {
		return out, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return out, fmt.Errorf("default certificate: %w", err)
	}
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return out, fmt.Errorf("default certificate: %w", err)
	}
	if err := os.WriteFile(certFile, cert, 0o644); err != nil {
		return out, fmt.Errorf("default certificate: %w", err)
	}
	return out, nil
}

func newCertificate() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("default certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("default certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "leapcell edge default"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		DNSNames: []string{"leapcell.localhost", "*.leapcell.localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, fmt.Errorf("default certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("default certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
