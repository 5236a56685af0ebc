package hook

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/source"
	"github.com/leapcell/leapcell/api/store"
	"github.com/leapcell/leapcell/api/vault"
)

// Names of a connection's secrets.
const (
	secretHook  = "hook"  // of the webhook
	secretKey   = "key"   // private half of the deploy key
	secretToken = "token" // of the host
)

// Vault seals and opens.
type Vault interface {
	Seal(ctx context.Context, key string, values map[string]string) (map[string]string, error)
	Open(ctx context.Context, key, sealed string) (string, error)
	Shred(ctx context.Context, key string) error
}

// KeyStore finds connections. An unknown one gives CodeNotFound.
type KeyStore interface {
	Connection(ctx context.Context, id string) (store.SealedConnection, error)
}

// Keys opens what connections are used with.
type Keys struct {
	store KeyStore
	vault Vault

	mu    sync.Mutex
	hooks map[string]hookSecret // by connection
}

// hookSecret is kept in memory: who sends forged events must not keep Vault busy.
type hookSecret struct{ sealed, plain string }

// NewKeys makes them.
func NewKeys(s KeyStore, v Vault) *Keys {
	return &Keys{store: s, vault: v, hooks: map[string]hookSecret{}}
}

// Access gives the credentials of a connection's repository.
func (k *Keys) Access(ctx context.Context, connection string) (source.Access, error) {
	c, err := k.store.Connection(ctx, connection)
	if err != nil {
		if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
			err = leapcell.Errorf(leapcell.CodeUnprocessable, "the service is no longer connected with the repository")
		}
		return source.Access{}, err
	}
	out := source.Access{User: c.User, HostKey: c.HostKey}
	if out.Token, err = k.open(ctx, c, secretToken); err != nil {
		return source.Access{}, err
	}
	key, err := k.open(ctx, c, secretKey)
	out.Key = []byte(key)
	return out, err
}

// open gives one secret of a connection, "" when it has none of that name.
func (k *Keys) open(ctx context.Context, c store.SealedConnection, name string) (string, error) {
	sealed := c.Sealed[name]
	if sealed == "" {
		return "", nil
	}
	return k.vault.Open(ctx, vault.SourceKey(c.ServiceID), sealed)
}

// hook gives the secret that signs events.
func (k *Keys) hook(ctx context.Context, c store.SealedConnection) (string, error) {
	sealed := c.Sealed[secretHook]
	k.mu.Lock()
	known, ok := k.hooks[c.ID]
	k.mu.Unlock()
	if ok && known.sealed == sealed {
		return known.plain, nil
	}
	plain, err := k.open(ctx, c, secretHook)
	if err != nil {
		return "", err
	}
	if plain == "" {
		return "", fmt.Errorf("connection %s has no secret", c.ID)
	}
	k.mu.Lock()
	k.hooks[c.ID] = hookSecret{sealed, plain}
	k.mu.Unlock()
	return plain, nil
}

func (k *Keys) forget(connection string) {
	k.mu.Lock()
	delete(k.hooks, connection)
	k.mu.Unlock()
}

// newDeployKey makes a pair: the private half as PEM, the public one as hosts want it.
func newDeployKey(comment string) (private, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return "", "", err
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + comment, nil
}
