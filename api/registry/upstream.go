package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/outbound"
)

// maxImageBytes bounds the layers of an image from outside, as they are transferred. It is the
// contract's; nodes bound what comes out of them.
const maxImageBytes = 10 << 30

// UpstreamConfig says where images from outside come from.
type UpstreamConfig struct {
	// Mirrors lead from a registry ("docker.io") to where its images are read in its stead:
	// "registry.example.com/hub", with http:// before it for plain HTTP. A registry that leads to
	// itself is one whose address need not be public.
	Mirrors map[string]string
	// Keychain has the operator's credentials; nil is that of Docker's configuration.
	Keychain authn.Keychain
	// Own is the platform's registry: images go there, and mirrors may be in it.
	Own *Client
}

// Upstream reads images from registries outside of the platform.
type Upstream struct {
	cfg     UpstreamConfig
	trusted http.RoundTripper // to where the operator leads
	public  http.RoundTripper // to where a user leads
}

// NewUpstream checks the mirrors; it makes no call.
func NewUpstream(cfg UpstreamConfig) (*Upstream, error) {
	if cfg.Keychain == nil {
		cfg.Keychain = authn.DefaultKeychain
	}
	for from, to := range cfg.Mirrors {
		if _, err := name.NewRepository(strings.TrimPrefix(strings.TrimPrefix(to, "http://"), "https://") + "/x"); err != nil || from == "" || strings.Contains(from, "/") {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "the mirror %s=%s cannot be used: it must look like docker.io=registry.example.com/hub", from, to)
		}
	}
	trusted := transportTo(nil)
	return &Upstream{cfg: cfg, trusted: trusted, public: publicOnly{transportTo(refusePrivate), trusted}}, nil
}

// ParseMirrors reads "docker.io=registry.example.com/hub,ghcr.io=…".
func ParseMirrors(text string) (map[string]string, error) {
	out := map[string]string{}
	for one := range strings.SplitSeq(text, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		from, to, ok := strings.Cut(one, "=")
		if !ok || from == "" || to == "" {
			return nil, fmt.Errorf("%q is no mirror: it must look like docker.io=registry.example.com/hub", one)
		}
		out[from] = strings.TrimSuffix(to, "/")
	}
	return out, nil
}

// source is where an image is read.
type source struct {
	ref       name.Reference
	transport http.RoundTripper
	auth      authn.Authenticator
}

func (s source) options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithTransport(s.transport), remote.WithAuth(s.auth), remote.WithUserAgent("leapcelld"), remote.WithJobs(2)}
}

// Check tells early, at the API, whether ref can name an image at all.
func (u *Upstream) Check(ref string) error {
	_, err := u.locate(ref)
	return err
}

// locate follows the mirrors.
func (u *Upstream) locate(ref string) (source, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil || strings.ContainsAny(ref, " \t\n") {
		return source{}, leapcell.Errorf(leapcell.CodeInvalid, "%q names no image: write it as nginx:1.27, ghcr.io/owner/name:tag or name@sha256:…", ref)
	}
	host := parsed.Context().RegistryStr()
	if host == name.DefaultRegistry {
		host = "docker.io"
	}
	if to, ok := u.cfg.Mirrors[host]; ok {
		return u.mirrored(parsed, to)
	}
	if host == u.cfg.Own.cred.Address {
		return source{}, leapcell.Errorf(leapcell.CodeForbidden, "%s is the platform's own registry: its images belong to services; roll back or redeploy instead", host)
	}
	auth, err := u.cfg.Keychain.Resolve(parsed.Context())
	if err != nil {
		return source{}, leapcell.Wrap(leapcell.CodeUnavailable, err, "the operator's credentials of registries cannot be read")
	}
	return source{parsed, u.public, auth}, nil
}

func (u *Upstream) mirrored(ref name.Reference, to string) (source, error) {
	var options []name.Option
	if plain, ok := strings.CutPrefix(to, "http://"); ok {
		to, options = plain, append(options, name.Insecure)
	}
	to = strings.TrimPrefix(to, "https://")
	separator := ":"
	if _, ok := ref.(name.Digest); ok {
		separator = "@"
	}
	there, err := name.ParseReference(to+"/"+ref.Context().RepositoryStr()+separator+ref.Identifier(), options...)
	if err != nil {
		return source{}, leapcell.Wrap(leapcell.CodeInvalid, err, fmt.Sprintf("the image %s has no place in the mirror %s", ref, to))
	}
	if there.Context().RegistryStr() == u.cfg.Own.cred.Address {
		own := u.cfg.Own.cred
		return source{there, u.trusted, &authn.Basic{Username: own.Username, Password: own.Password}}, nil
	}
	auth, err := u.cfg.Keychain.Resolve(there.Context())
	if err != nil {
		return source{}, leapcell.Wrap(leapcell.CodeUnavailable, err, "the operator's credentials of registries cannot be read")
	}
	return source{there, u.trusted, auth}, nil
}

// Describe reads the manifest or index that ref names, as it is.
func (u *Upstream) Describe(ctx context.Context, ref string) (*remote.Descriptor, error) {
	s, err := u.locate(ref)
	if err != nil {
		return nil, err
	}
	desc, err := remote.Get(s.ref, s.options(ctx)...)
	if err != nil {
		return nil, explain(err, ref)
	}
	return desc, nil
}

// Copy brings the image that ref names for this platform into its registry, as repository:tag,
// and gives its reference there, with digest. Layers that are there already are not moved.
func (u *Upstream) Copy(ctx context.Context, ref, repository, tag string, progress func(string)) (string, error) {
	desc, err := u.Describe(ctx, ref)
	if err != nil {
		return "", err
	}
	img, err := choose(desc, ref)
	if err != nil {
		return "", err
	}
	size, err := bytesOf(img)
	if err != nil {
		return "", explain(err, ref)
	}
	if size > maxImageBytes {
		return "", leapcell.Errorf(leapcell.CodeTooLarge, "the image %s has %d MB: at most %d MB are allowed", ref, size>>20, maxImageBytes>>20)
	}
	progress(fmt.Sprintf("image %s: %s, %d MB", ref, desc.Digest, size>>20))
	at, err := u.cfg.Own.Push(ctx, repository, tag, img)
	var answer *transport.Error
	if errors.As(err, &answer) && answer.Request != nil && answer.Request.URL.Host != u.cfg.Own.cred.Address {
		return "", explain(err, ref) // a layer could not be read
	}
	return at, err
}

// Config is how an image in the platform's registry is to be run.
func (u *Upstream) Config(ctx context.Context, repository, tag string) (v1.Config, int64, error) {
	img, err := u.cfg.Own.Image(ctx, repository, tag)
	if err != nil {
		return v1.Config{}, 0, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return v1.Config{}, 0, u.cfg.Own.wrap(err, "read the configuration of "+repository)
	}
	size, err := bytesOf(img)
	return file.Config, size, err
}

// choose takes the image of this machine's kind.
func choose(desc *remote.Descriptor, ref string) (v1.Image, error) {
	own := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if !desc.MediaType.IsIndex() {
		return single(desc, ref, own)
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, explain(err, ref)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, explain(err, ref)
	}
	var others []string
	for _, m := range manifest.Manifests {
		if m.Platform == nil || m.Platform.OS == "unknown" {
			continue
		}
		if m.Platform.Satisfies(own) {
			img, err := index.Image(m.Digest)
			if err != nil {
				return nil, explain(err, ref)
			}
			return img, nil
		}
		others = append(others, m.Platform.String())
	}
	slices.Sort(others)
	return nil, wrongPlatform(ref, strings.Join(slices.Compact(others), ", "), own)
}

func single(desc *remote.Descriptor, ref string, own v1.Platform) (v1.Image, error) {
	if !desc.MediaType.IsImage() {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "%s is no image: its registry calls it %s", ref, desc.MediaType)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, explain(err, ref)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, explain(err, ref)
	}
	is := v1.Platform{OS: file.OS, Architecture: file.Architecture}
	if is.OS != own.OS || is.Architecture != own.Architecture {
		return nil, wrongPlatform(ref, is.String(), own)
	}
	return img, nil
}

func wrongPlatform(ref, is string, own v1.Platform) error {
	return leapcell.Errorf(leapcell.CodeUnprocessable, "the image %s is made for %s: this platform needs %s", ref, is, own)
}

func bytesOf(img v1.Image) (size int64, err error) {
	manifest, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	for _, l := range manifest.Layers {
		if l.Size < 0 || len(l.URLs) > 0 {
			return 0, leapcell.Errorf(leapcell.CodeUnprocessable, "its layer %s is not in the registry, or has no size", l.Digest)
		}
		size += l.Size
	}
	return size, nil
}

// explain says in the user's words what a registry answered.
func explain(err error, ref string) error {
	var known *leapcell.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			return leapcell.Wrap(leapcell.CodeUnprocessable, err, "the image "+ref+" is not there: check its name and tag")
		case http.StatusUnauthorized, http.StatusForbidden:
			return leapcell.Wrap(leapcell.CodeUnprocessable, err, "the image "+ref+" is not there, or is private: an operator gives access by `docker login` on the control plane")
		case http.StatusTooManyRequests:
			return leapcell.Wrap(leapcell.CodeUnavailable, err, "the registry of "+ref+" takes no more requests for now: an operator may set a mirror or log in")
		}
		if answer.StatusCode < 500 {
			return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("the registry of %s answered with status %d", ref, answer.StatusCode))
		}
	}
	if errors.Is(err, errPrivate) {
		return leapcell.Wrap(leapcell.CodeForbidden, err, "the registry of "+ref+" is not public: an operator may allow it as a mirror of itself")
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "the registry of "+ref+" does not answer")
}

func transportTo(control func(network, address string, _ syscall.RawConn) error) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, Control: control}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // digests are of what is transferred
	}
}

var errPrivate = errors.New("the address is not public")

// refusePrivate keeps users' references out of the networks that only the platform is in.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	return refuseAddr(at.Addr().Unmap())
}

func refuseAddr(ip netip.Addr) error {
	if !outbound.Networks(nil).Allows(ip) {
		return fmt.Errorf("%w: %s", errPrivate, ip)
	}
	return nil
}

// publicOnly is for references of users: by HTTPS, and to public addresses. A proxy of the
// operator decides for itself what it leads to.
type publicOnly struct{ direct, proxy http.RoundTripper }

func (p publicOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil {
		if err := refuseAddr(ip.Unmap()); err != nil {
			return nil, err
		}
	}
	if strings.EqualFold(req.URL.Hostname(), "localhost") {
		return nil, errPrivate
	}
	if req.URL.Scheme != "https" {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed", req.URL.Host)
	}
	if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy != nil {
		return p.proxy.RoundTrip(req)
	}
	return p.direct.RoundTrip(req)
}
