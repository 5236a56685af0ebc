package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/leapcell/leapcell"
)

const callTimeout = 10 * time.Second

// Config says where Vault is and how to get in.
type Config struct {
	Address   string // "http://127.0.0.1:8200"
	Token     string // or
	TokenFile string // read at the start, and again when Vault no longer takes the token
	Transit   string // mount of the transit engine: "leapcell"
	Log       *slog.Logger
}

// Sealer seals values. It is safe for concurrent use.
type Sealer struct {
	cfg Config
	api *api.Client
}

// New makes a sealer; it makes no call.
func New(cfg Config) (*Sealer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := api.DefaultConfig()
	if c.Error != nil {
		return nil, fmt.Errorf("vault: %w", c.Error)
	}
	c.Address = cfg.Address
	c.Timeout = callTimeout
	c.MaxRetries = 1 // who waits for us wants to hear of trouble soon
	client, err := api.NewClient(c)
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the Vault address %q cannot be used: %v", cfg.Address, err)
	}
	client.ClearNamespace() // the settings decide, not this process's environment
	s := &Sealer{cfg: cfg, api: client}
	return s, s.loadToken()
}

func (s *Sealer) loadToken() error {
	token := s.cfg.Token
	if s.cfg.TokenFile != "" {
		b, err := os.ReadFile(s.cfg.TokenFile)
		if err != nil {
			return leapcell.Errorf(leapcell.CodeInvalid, "the Vault token cannot be read: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	s.api.SetToken(token)
	return nil
}

// Seal encrypts values with the service's key, which it makes on first use, in one call.
// The result has the same names.
func (s *Sealer) Seal(ctx context.Context, serviceID string, values map[string]string) (map[string]string, error) {
	if len(values) == 0 {
		return map[string]string{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	names := slices.Sorted(maps.Keys(values))
	batch := make([]any, len(names))
	for i, name := range names {
		batch[i] = map[string]any{"plaintext": base64.StdEncoding.EncodeToString([]byte(values[name]))}
	}
	if err := s.makeKey(ctx, serviceID); err != nil {
		return nil, err
	}
	secret, err := s.api.Logical().WriteWithContext(ctx, s.path("encrypt", serviceID), map[string]any{"batch_input": batch})
	if err != nil {
		return nil, s.wrap(err, "encrypt")
	}
	return sealedValues(names, secret)
}

// OpenAs decrypts a value by the right of another token than ours, which it also renews.
func (s *Sealer) OpenAs(ctx context.Context, token, serviceID, sealed string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	other, err := s.api.Clone()
	if err != nil {
		return "", fmt.Errorf("vault: %w", err)
	}
	other.SetToken(token)
	secret, err := other.Logical().WriteWithContext(ctx, s.path("decrypt", serviceID), map[string]any{"ciphertext": sealed})
	var e *api.ResponseError
	if errors.As(err, &e) && e.StatusCode == http.StatusForbidden {
		return "", leapcell.Wrap(leapcell.CodeForbidden, err, "Vault does not let this token open values: it has ended or was revoked; `leapcell up` makes a new one")
	}
	if err != nil {
		return "", s.wrap(err, "decrypt")
	}
	value, err := openedValue(secret)
	if err != nil {
		return "", err
	}
	if _, err := other.Auth().Token().RenewSelfWithContext(ctx, 0); err != nil {
		s.cfg.Log.Warn("vault: the token for reading back is not renewed", "err", err)
	}
	return value, nil
}

// makeKey makes the service's key; one that exists is left as it is. Encrypting would make
// it too, but only for a token that may create keys of any kind.
func (s *Sealer) makeKey(ctx context.Context, serviceID string) error {
	_, err := s.api.Logical().WriteWithContext(ctx, s.path("keys", serviceID), map[string]any{"type": "aes256-gcm96"})
	return s.wrap(err, "make a key")
}

func sealedValues(names []string, secret *api.Secret) (map[string]string, error) {
	var results []any
	if secret != nil {
		results, _ = secret.Data["batch_results"].([]any)
	}
	if len(results) != len(names) {
		return nil, fmt.Errorf("vault answered %d sealed values for %d", len(results), len(names))
	}
	sealed := make(map[string]string, len(names))
	for i, name := range names {
		item, _ := results[i].(map[string]any)
		text, _ := item["ciphertext"].(string)
		if !strings.HasPrefix(text, "vault:") {
			return nil, fmt.Errorf("vault did not seal the value of %s", name) // no more: the answer might hold it
		}
		sealed[name] = text
	}
	return sealed, nil
}

// Open decrypts what Seal made of the control plane's own values. Those of services it may
// not: see [SourceKey].
func (s *Sealer) Open(ctx context.Context, key, sealed string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := s.api.Logical().WriteWithContext(ctx, s.path("decrypt", key), map[string]any{"ciphertext": sealed})
	if err != nil {
		return "", s.wrap(err, "decrypt")
	}
	return openedValue(secret)
}

func openedValue(secret *api.Secret) (string, error) {
	var text string
	if secret != nil {
		text, _ = secret.Data["plaintext"].(string)
	}
	plain, err := base64.StdEncoding.DecodeString(text)
	if err != nil || secret == nil {
		return "", errors.New("vault did not open the value") // no more: the answer might hold it
	}
	return string(plain), nil
}

// SourceKey names the key that seals what a service's repository is read with. The control
// plane may decrypt with keys of such names, and with no other: the dot keeps them apart from
// those of environments, which are named after services.
func SourceKey(serviceID string) string { return "source." + serviceID }

// Shred deletes the service's key, and with it every value that was ever sealed with it. A
// key that is not there is no error.
func (s *Sealer) Shred(ctx context.Context, serviceID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.api.Logical().WriteWithContext(ctx, s.path("keys", serviceID)+"/config", map[string]any{"deletion_allowed": true})
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return s.wrap(err, "allow the deletion of a key")
	}
	_, err = s.api.Logical().DeleteWithContext(ctx, s.path("keys", serviceID))
	if isMissing(err) {
		return nil
	}
	return s.wrap(err, "delete a key")
}

// isMissing reports whether Vault says that there is no such key. It has no status of its
// own for that.
func isMissing(err error) bool {
	var e *api.ResponseError
	if !errors.As(err, &e) {
		return false
	}
	if e.StatusCode == http.StatusNotFound {
		return true
	}
	text := strings.Join(e.Errors, " ")
	return e.StatusCode == http.StatusBadRequest &&
		(strings.Contains(text, "no existing key") || strings.Contains(text, "could not delete key; not found"))
}

// Health reports whether Vault is there, unsealed and takes the token.
func (s *Sealer) Health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	health, err := s.api.Sys().HealthWithContext(ctx)
	switch {
	case err != nil:
		return s.wrap(err, "report its health")
	case !health.Initialized:
		return leapcell.Errorf(leapcell.CodeUnavailable, "Vault is not initialised: initialise and unseal it, then repeat")
	case health.Sealed:
		return errSealed(nil)
	}
	_, err = s.api.Auth().Token().LookupSelfWithContext(ctx)
	return s.wrap(err, "look up leapcelld's token")
}

func (s *Sealer) path(what, serviceID string) string {
	return s.cfg.Transit + "/" + what + "/" + serviceID
}

func errSealed(err error) error {
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "Vault is sealed: unseal it, then repeat")
}

// wrap gives err a code and words. what completes "Vault refused to …".
func (s *Sealer) wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("vault: %s: %w", what, err)
	}
	var e *api.ResponseError
	if !errors.As(err, &e) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err,
			fmt.Sprintf("Vault at %s does not answer: %s; is it running?", s.cfg.Address, rootCause(err)))
	}
	switch {
	case strings.Contains(strings.Join(e.Errors, " "), "Vault is sealed"):
		return errSealed(err)
	case e.StatusCode == http.StatusForbidden:
		return leapcell.Wrap(leapcell.CodeUnavailable, err,
			"Vault refused to "+what+": the token of leapcelld is not valid or may not do that; check --vault-token-file")
	case e.StatusCode >= 500:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "Vault could not "+what+" at the moment: repeat in some seconds")
	}
	return leapcell.Wrap(leapcell.CodeInternal, err, "Vault refused to "+what)
}

// rootCause is the innermost text of err: "connect: connection refused".
func rootCause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer within " + callTimeout.String()
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
