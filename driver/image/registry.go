package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/leapcell/leapcell"
)

// Registry is how to speak to one registry. The zero value is nobody, by HTTPS.
type Registry struct {
	Address  string `json:"address"` // host or host:port, as references begin
	Username string `json:"username"`
	Password string `json:"password"`
	Insecure bool   `json:"insecure"` // allows plain HTTP
	CAFile   string `json:"ca_file"`  // PEM, trusted beside the system's
}

// Registries reads settings of registries from file: a JSON object of the fields of [Registry],
// or a list of them. The file is read again when it has changed, so that passwords can. "" is
// no file. What cannot be read is logged and keeps what was there before.
func Registries(file string, log *slog.Logger) func(host string) Registry {
	r := &registries{file: file, log: log}
	return r.of
}

type registries struct {
	file string
	log  *slog.Logger

	mu    sync.Mutex
	state os.FileInfo // of the file when it was read
	list  []Registry
}

func (r *registries) of(host string) Registry {
	if r.file == "" {
		return Registry{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	state, err := os.Stat(r.file)
	if err == nil && (r.state == nil || !os.SameFile(r.state, state) || !r.state.ModTime().Equal(state.ModTime()) || r.state.Size() != state.Size()) {
		var list []Registry
		if list, err = readRegistries(r.file); err == nil {
			r.state, r.list = state, list
		}
	}
	if err != nil {
		r.log.Error("registry credentials could not be read", "file", r.file, "error", err)
	}
	for _, one := range r.list {
		if sameHost(one.Address, host) {
			return one
		}
	}
	return Registry{}
}

// sameHost knows that the Docker Hub has two names.
func sameHost(a, b string) bool {
	hub := func(host string) string {
		if host == "docker.io" {
			return name.DefaultRegistry
		}
		return host
	}
	return hub(a) == hub(b)
}

func readRegistries(file string) ([]Registry, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []Registry
	if strings.HasPrefix(strings.TrimSpace(string(text)), "[") {
		return list, json.Unmarshal(text, &list)
	}
	list = make([]Registry, 1)
	return list, json.Unmarshal(text, &list[0])
}

// errPlain is what a registry gets that would have to be spoken to by HTTP.
var errPlain = errors.New("plain HTTP is not allowed")

// manifestLimit bounds manifests, of which registries and clients agree that 4 MB are enough.
const manifestLimit = 8 << 20

// link is a way to a registry, for one operation. It implements http.RoundTripper without
// any login. Close it.
type link struct {
	base     *http.Transport
	auth     authn.Authenticator
	insecure bool
}

func (s *Store) link(host string) (*link, error) {
	r := s.cfg.Registries(host)
	l := &link{auth: authn.Anonymous, insecure: r.Insecure}
	if r.Username != "" {
		l.auth = &authn.Basic{Username: r.Username, Password: r.Password}
	}
	l.base = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		MaxIdleConnsPerHost:   8,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // digests are of what is transferred
	}
	if r.CAFile == "" {
		return l, nil
	}
	pem, err := os.ReadFile(r.CAFile)
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("the ca_file %s of the registry %s cannot be read", r.CAFile, host))
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the ca_file %s of the registry %s has no certificate in PEM form", r.CAFile, host)
	}
	l.base.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return l, nil
}

func (l *link) Close() { l.base.CloseIdleConnections() }

// RoundTrip keeps everything on HTTPS, unless told otherwise: the login server and the storage
// that a registry sends us to as well.
func (l *link) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !l.insecure {
		return nil, errPlain
	}
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && (ip.IsLinkLocalUnicast() || ip.IsMulticast()) {
		return nil, fmt.Errorf("%s is no place for a registry", ip) // the metadata of clouds is there
	}
	resp, err := l.base.RoundTrip(req)
	if err == nil && strings.Contains(req.URL.Path, "/manifests/") {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, manifestLimit), resp.Body}
	}
	return resp, err
}

// login gives a client that is logged in for scope of repo.
func (l *link) login(ctx context.Context, repo name.Repository, scope string) (http.RoundTripper, error) {
	return transport.NewWithContext(ctx, repo.Registry, l.auth, transport.NewUserAgent(l, userAgent), []string{repo.Scope(scope)})
}

const userAgent = "leapcell-node"

// options are those of operations that log in by themselves. They try once: the patience is ours.
func (l *link) options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Steps: 1}),
		remote.WithContext(ctx), remote.WithTransport(l), remote.WithAuth(l.auth), remote.WithJobs(2), remote.WithUserAgent(userAgent),
	}
}

// registryOf is the host of a reference, that of the Docker Hub if it names none.
func registryOf(ref string) string {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return ""
	}
	return parsed.Context().RegistryStr()
}

// nameOptions allow plain HTTP to the registries that may be spoken to so.
func (s *Store) nameOptions(ref string) []name.Option {
	if s.cfg.Registries(registryOf(ref)).Insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

// patiently repeats op while the registry cannot be reached, or breaks off.
func (s *Store) patiently(ctx context.Context, op func() error) error {
	end := time.Now().Add(s.cfg.Patience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := op()
		if !isAway(err) || time.Now().After(end) || rest(ctx, pause) != nil {
			return err
		}
	}
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// transferring is what fails when a registry is killed; what is pushed from a file or pipe is a "readfrom".
var transferring = []string{"dial", "read", "write", "readfrom"}

// isAway reports whether err is of a registry that may be back in a moment.
func isAway(err error) bool {
	var known *leapcell.Error
	if errors.As(err, &known) {
		return false // about what it sent
	}
	var broken *net.OpError
	var answer *transport.Error
	return errors.As(err, &broken) && slices.Contains(transferring, broken.Op) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.As(err, &answer) && temporary(answer.StatusCode)
}

func temporary(status int) bool {
	return status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout || status == http.StatusTooManyRequests
}

// explain makes errors of pulls and pushes readable for operators.
func (s *Store) explain(err error, ref string) error {
	err = s.plain(err)
	var known *leapcell.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	host, _, _ := strings.Cut(ref, "/")
	var answer *transport.Error
	var stranger x509.UnknownAuthorityError
	wrap := func(code leapcell.Code, format string, args ...any) error {
		return leapcell.Wrap(code, err, fmt.Sprintf(format, args...))
	}
	switch {
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return wrap(leapcell.CodeNotFound, "the image %s is not in its registry", ref)
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return wrap(leapcell.CodeForbidden, "the registry %s refuses this node's credentials", host)
	case errors.As(err, &answer):
		return wrap(leapcell.CodeUnavailable, "the registry %s answered with status %d", host, answer.StatusCode)
	case errors.As(err, &stranger):
		return wrap(leapcell.CodeUnavailable, "the certificate of the registry %s is of an unknown authority: name it as ca_file in the registry credentials", host)
	case errors.Is(err, errPlain), errors.Is(err, http.ErrSchemeMismatch):
		return wrap(leapcell.CodeUnavailable, "the registry %s cannot be spoken to by HTTPS, and plain HTTP is not allowed: set insecure for it in the registry credentials if that is meant", host)
	}
	return wrap(leapcell.CodeUnavailable, "the image %s could not be transferred", ref)
}
