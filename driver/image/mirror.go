package image

import (
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/leapcell/leapcell"
)

// mirrorPath begins the names of the repositories that a registry brings from elsewhere.
const mirrorPath = "mirror/"

// wanted is what a build may ask for: manifests and blobs of one repository, to read. No part of a
// name is "..".
var wanted = regexp.MustCompile(`^/v2/(` + part + `(?:/` + part + `)*)/(manifests|blobs)/([A-Za-z0-9][A-Za-z0-9._:-]*)$`)

const part = `[a-z0-9]+(?:[._-]+[a-z0-9]+)*`

// Mirror lets a build read images by the registry that ref is in, and nothing else of it: it is
// not trusted, and gets no credentials. Close the closer.
func (s *Store) Mirror(ref string) (http.Handler, io.Closer, error) {
	parsed, err := name.ParseReference(ref, s.nameOptions(ref)...)
	if err != nil {
		return nil, nil, leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository:tag is needed", ref)
	}
	registry := parsed.Context().Registry
	l, err := s.link(registry.RegistryStr())
	if err != nil {
		return nil, nil, err
	}
	l.base.ResponseHeaderTimeout = 0 // the image may have to be brought first
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		m := wanted.FindStringSubmatch(req.URL.Path)
		if m == nil || req.Method != http.MethodGet && req.Method != http.MethodHead {
			http.Error(w, "this is no image to read", http.StatusForbidden)
			return
		}
		repo := registry.Repo(mirrorPath + m[1])
		if err := l.pass(w, req, repo, m[2], m[3]); err != nil {
			s.cfg.Log.Warn("a build gets no answer from the registry", "repository", repo.Name(), "error", err)
			http.Error(w, "the platform's registry does not answer", http.StatusBadGateway)
		}
	}), closer(l.Close), nil
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

// passed are the headers of a request and of its answer that matter.
var passed = []string{"Accept", "Range", "Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest"}

func (l *link) pass(w http.ResponseWriter, req *http.Request, repo name.Repository, kind, identifier string) error {
	login, err := l.login(req.Context(), repo, transport.PullScope)
	if err != nil {
		return err
	}
	at := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/" + kind + "/" + identifier}
	there, err := http.NewRequestWithContext(req.Context(), req.Method, at.String(), nil)
	if err != nil {
		return err
	}
	copyHeaders(there.Header, req.Header)
	resp, err := login.RoundTrip(there)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	copyHeaders(w.Header(), resp.Header)
	if req.Method == http.MethodHead && resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // it finds out by the length, or by the digest
	return nil
}

func copyHeaders(to, from http.Header) {
	for _, name := range passed {
		for _, v := range from.Values(name) {
			to.Add(name, v)
		}
	}
}
