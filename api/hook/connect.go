package hook

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/outbound"
	"github.com/leapcell/leapcell/api/source"
	"github.com/leapcell/leapcell/api/store"
	"github.com/leapcell/leapcell/api/vault"

	"golang.org/x/crypto/ssh"
)

// Store is what the hub remembers across restarts.
type Store interface {
	KeyStore
	Service(ctx context.Context, nameOrID string) (leapcell.Service, error)
	ConnectionOf(ctx context.Context, serviceID string) (store.SealedConnection, error)
	PutConnection(ctx context.Context, c store.SealedConnection) error
	DeleteConnection(ctx context.Context, serviceID string) error

	AddGitEvent(ctx context.Context, connectionID string, deliveries []string, event leapcell.GitEvent) (added bool, err error)
	GitEvents(ctx context.Context) ([]store.StoredEvent, error)
	GitEventDone(ctx context.Context, id int64) error
	ForgetDeliveries(ctx context.Context, before time.Time) error

	Deployment(ctx context.Context, id string) (leapcell.Deployment, error)
	Deployments(ctx context.Context, serviceID string, limit int) ([]leapcell.Deployment, error)
	WantReport(ctx context.Context, deploymentID string) error
	Reports(ctx context.Context) ([]string, error)
	ReportDone(ctx context.Context, deploymentID string) error
}

// Sources knows repositories.
type Sources interface {
	CheckGit(src leapcell.Source) error
	// HostKey asks the ssh host of a repository for its key.
	HostKey(ctx context.Context, gitURL string) (string, error)
}

// Deployer deploys.
type Deployer interface {
	Submit(ctx context.Context, svc leapcell.Service, src leapcell.Source, origin leapcell.Origin, archive io.Reader) (leapcell.Deployment, error)
	// Wait blocks until the deployment is done or ctx ends.
	Wait(ctx context.Context, id string) (leapcell.Deployment, error)
	// Overtake ends the deployments of dep's branch that wait for their build and are older.
	Overtake(ctx context.Context, dep leapcell.Deployment) error
	// EndPreview removes what is seen of a branch. It may be repeated.
	EndPreview(ctx context.Context, svc leapcell.Service, label string) error
}

// Config plugs a hub together.
type Config struct {
	Store    Store
	Keys     *Keys
	Sources  Sources
	Deployer Deployer
	// Networks are the private networks that the APIs of hosts may be in.
	Networks outbound.Networks
	// Pause is the first wait before something is tried again; default 1 second.
	Pause time.Duration
	Log   *slog.Logger
}

// Hub joins services with repositories. It is safe for concurrent use.
type Hub struct {
	cfg    Config
	web    *http.Client
	events chan struct{}  // there may be one; holds one
	report chan string    // deployments whose outcome is to be told
	asides sync.WaitGroup // hosts that are being told of what is not deployed
}

// New makes a hub. Run it.
func New(cfg Config) *Hub {
	if cfg.Pause == 0 {
		cfg.Pause = time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Hub{cfg: cfg, web: cfg.Networks.Client(reportTimeout), events: make(chan struct{}, 1), report: make(chan string, 64)}
}

// Connect is what a user says of a connection.
type Connect struct {
	GitURL   string            `json:"gitURL"`
	Branch   string            `json:"branch"`
	RootDir  string            `json:"rootDir"`
	Previews bool              `json:"previews"`
	Provider leapcell.Provider `json:"provider"` // "" when the address tells
	APIURL   string            `json:"apiURL"`   // "" for where such hosts have it
	User     string            `json:"user"`
	Token    string            `json:"token"`   // "" keeps the one that is there
	HostKey  string            `json:"hostKey"` // for ssh: as the user knows it; "" takes what the host shows
	Rotate   bool              `json:"rotate"`  // makes another secret and another deploy key
}

// Connected is a connection, and once the secret of its webhook.
type Connected struct {
	leapcell.Connection
	Secret string `json:"secret,omitempty"`
}

// Connect joins svc with a repository. Said again of the same repository it changes the
// rest, and keeps secret and key unless they are to be new.
func (h *Hub) Connect(ctx context.Context, svc leapcell.Service, in Connect) (Connected, error) {
	former, err := h.cfg.Store.ConnectionOf(ctx, svc.ID)
	if err != nil && leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return Connected{}, err
	}
	if in.Provider == "" && err == nil && former.GitURL == source.CleanURL(in.GitURL) {
		in.Provider = former.Provider
		in.APIURL = first(in.APIURL, former.APIURL)
	}
	found := err == nil
	c, err := h.describe(svc, in)
	if err != nil {
		return Connected{}, err
	}
	secrets := map[string]string{}
	if found && former.GitURL == c.GitURL {
		if c.APIURL != former.APIURL && former.HasToken && in.Token == "" {
			return Connected{}, leapcell.Errorf(leapcell.CodeInvalid, "the token must be given again when the address of the host's API changes: it is not handed to another host unasked")
		}
		c.ID, c.CreatedAt, c.HookPath = former.ID, former.CreatedAt, former.HookPath
		c.PublicKey, c.HostKey, c.Sealed = former.PublicKey, former.HostKey, former.Sealed
		if c.User == "" {
			c.User = former.User
		}
	}
	if c.Sealed[secretHook] == "" || in.Rotate {
		secrets[secretHook] = rand.Text()
	}
	if in.Token != "" {
		secrets[secretToken] = in.Token
	}
	if strings.HasPrefix(c.GitURL, "ssh://") {
		if err := h.keys(ctx, svc, &c, secrets, in); err != nil {
			return Connected{}, err
		}
	}
	sealed, err := h.cfg.Keys.vault.Seal(ctx, vault.SourceKey(svc.ID), secrets)
	if err != nil {
		return Connected{}, err
	}
	all := map[string]string{}
	for _, from := range []map[string]string{c.Sealed, sealed} {
		for name, value := range from {
			all[name] = value
		}
	}
	c.Sealed, c.HasToken = all, all[secretToken] != ""
	if err := h.cfg.Store.PutConnection(ctx, c); err != nil {
		return Connected{}, err
	}
	h.cfg.Keys.forget(c.ID)
	h.cfg.Log.Info("service connected", "service", svc.ID, "connection", c.ID)
	return Connected{c.Connection, secrets[secretHook]}, nil
}

// describe checks what a user says and completes it.
func (h *Hub) describe(svc leapcell.Service, in Connect) (store.SealedConnection, error) {
	var c store.SealedConnection
	id := "c" + strings.ToLower(rand.Text()[:20])
	c.Connection = leapcell.Connection{
		ID: id, ServiceID: svc.ID, GitURL: source.CleanURL(in.GitURL), Branch: in.Branch, RootDir: in.RootDir, Previews: in.Previews,
		Provider: in.Provider, APIURL: strings.TrimRight(in.APIURL, "/"), User: in.User, HookPath: "/v1/hooks/" + id, CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
	}
	if err := h.cfg.Sources.CheckGit(leapcell.Source{GitURL: c.GitURL, Branch: c.Branch, Connection: id}); err != nil {
		return c, err
	}
	if c.Branch == "" {
		return c, leapcell.Errorf(leapcell.CodeInvalid, "the branch is missing: a push to it deploys")
	}
	u, err := url.Parse(c.GitURL)
	if err != nil {
		return c, leapcell.Errorf(leapcell.CodeInvalid, "the git URL cannot be read")
	}
	if c.Provider == "" {
		c.Provider = providerOf(u.Hostname())
	}
	switch c.Provider {
	case leapcell.GitHub, leapcell.GitLab, leapcell.Gitea:
	case "":
		return c, leapcell.Errorf(leapcell.CodeInvalid, "%s does not tell what kind of host it is: name the provider, github, gitlab or gitea", u.Hostname())
	default:
		return c, leapcell.Errorf(leapcell.CodeInvalid, "the provider %q is not known: it must be github, gitlab or gitea", c.Provider)
	}
	if c.APIURL == "" {
		c.APIURL = apiOf(c.Provider, u)
	}
	if api, err := url.Parse(c.APIURL); c.APIURL != "" && (err != nil || api.Host == "" || api.Scheme != "https" && api.Scheme != "http" || api.User != nil) {
		return c, leapcell.Errorf(leapcell.CodeInvalid, "the address of the host's API cannot be used: it must be like https://git.example.com/api/v1")
	}
	if strings.ContainsAny(in.User+in.Token, "\x00\r\n:") {
		return c, leapcell.Errorf(leapcell.CodeInvalid, "the user or the token has characters that cannot be in one")
	}
	return c, nil
}

// keys makes the deploy key of an ssh repository and pins the key of its host.
func (h *Hub) keys(ctx context.Context, svc leapcell.Service, c *store.SealedConnection, secrets map[string]string, in Connect) error {
	if c.Sealed[secretKey] == "" || in.Rotate {
		private, public, err := newDeployKey("leapcell-" + svc.ID)
		if err != nil {
			return err
		}
		secrets[secretKey], c.PublicKey = private, public
	}
	if in.HostKey != "" {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(in.HostKey))
		if err != nil {
			return leapcell.Errorf(leapcell.CodeInvalid, "the host key cannot be read: it must be like ssh-ed25519 AAAA…")
		}
		c.HostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
		return nil
	}
	// Each connect asks anew: that is how a host's new key is accepted.
	key, err := h.cfg.Sources.HostKey(ctx, c.GitURL)
	c.HostKey = key
	return err
}

func providerOf(host string) leapcell.Provider {
	switch {
	case host == "github.com" || strings.HasSuffix(host, ".ghe.com"):
		return leapcell.GitHub
	case host == "gitlab.com":
		return leapcell.GitLab
	case host == "codeberg.org" || host == "gitea.com":
		return leapcell.Gitea
	}
	return ""
}

// apiOf is where a host of that kind has its API.
func apiOf(p leapcell.Provider, u *url.URL) string {
	at := url.URL{Scheme: u.Scheme, Host: u.Host}
	if u.Scheme == "ssh" || u.Scheme == "file" {
		at.Scheme, at.Host = "https", u.Hostname()
	}
	switch {
	case at.Host == "":
		return ""
	case p == leapcell.GitHub && u.Hostname() == "github.com":
		return "https://api.github.com"
	case p == leapcell.GitHub:
		return at.String() + "/api/v3"
	case p == leapcell.GitLab:
		return at.String() + "/api/v4"
	}
	return at.String() + "/api/v1"
}

// Connection gives the connection of a service.
func (h *Hub) Connection(ctx context.Context, svc leapcell.Service) (leapcell.Connection, error) {
	c, err := h.cfg.Store.ConnectionOf(ctx, svc.ID)
	return c.Connection, err
}

// Disconnect ends a connection. Previews of it end with it.
func (h *Hub) Disconnect(ctx context.Context, svc leapcell.Service) error {
	c, err := h.cfg.Store.ConnectionOf(ctx, svc.ID)
	if err != nil {
		return err
	}
	all, err := h.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return err
	}
	ended := map[string]bool{}
	for _, dep := range all {
		if dep.Preview == "" || ended[dep.Preview] || dep.State.Done() && !dep.PreviewEnded.IsZero() {
			continue
		}
		ended[dep.Preview] = true
		if err := h.cfg.Deployer.EndPreview(ctx, svc, dep.Preview); err != nil {
			return err
		}
	}
	if err := h.cfg.Store.DeleteConnection(ctx, svc.ID); err != nil {
		return err
	}
	h.cfg.Keys.forget(c.ID)
	return h.cfg.Keys.vault.Shred(ctx, vault.SourceKey(svc.ID))
}
