package registry

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
)

// maxManifest is the largest that the library takes.
const maxManifest = 4 << 20

var aboutContent = regexp.MustCompile(`^/v2/([a-z0-9][a-z0-9._/-]*)/(blobs|manifests)/(.+)$`)

// serveAged passes a request on to the library, after it has renewed the age of all that who
// sent it relies on from now on: what he brings, what he brings not because it is there, and
// what a manifest of his refers to.
func (r *Registry) serveAged(w http.ResponseWriter, req *http.Request) {
	m := aboutContent.FindStringSubmatch(req.URL.Path)
	if m == nil || strings.Contains(m[1], "..") {
		r.app.ServeHTTP(w, req)
		return
	}
	repository, kind, identifier := m[1], m[2], m[3]
	switch {
	case req.Method == http.MethodHead:
		if hex, ok := digitsOf(identifier); ok {
			r.renew(repository, hex)
		}
	case kind == "manifests" && req.Method == http.MethodPut:
		r.storeManifest(w, req, repository, identifier)
		return
	case req.Method == http.MethodPost || req.Method == http.MethodPut:
		query := req.URL.Query()
		for _, name := range []string{"digest", "mount"} {
			if hex, ok := digitsOf(query.Get(name)); ok {
				r.renew(repository, hex)
			}
		}
		if hex, ok := digitsOf(query.Get("mount")); ok && aboutContent.MatchString("/v2/"+query.Get("from")+"/blobs/x") && !strings.Contains(query.Get("from"), "..") {
			r.renew(query.Get("from"), hex)
		}
	}
	r.app.ServeHTTP(w, req)
}

// storeManifest reads a manifest before it is handed on, so that nobody waits for who sends it:
// while it is stored, no manifest can be removed.
func (r *Registry) storeManifest(w http.ResponseWriter, req *http.Request, repository, identifier string) {
	b, err := io.ReadAll(io.LimitReader(req.Body, maxManifest+1))
	if err != nil || len(b) > maxManifest {
		refuse(w, http.StatusBadRequest, "MANIFEST_INVALID", "the manifest is cut short, or larger than 4 MB")
		return
	}
	r.renew(repository, append(references(b), digits(b))...)
	r.renewTagged(repository, identifier)
	req.Body = io.NopCloser(bytes.NewReader(b))
	r.sweeping.RLock()
	defer r.sweeping.RUnlock()
	r.app.ServeHTTP(w, req)
}
