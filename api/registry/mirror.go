package registry

import (
	"context"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sync/singleflight"

	"github.com/leapcell/leapcell"
)

// MirrorPath begins the names of repositories that stand for those of other registries:
// "mirror/docker.io/library/nginx". Builds of Dockerfiles read the images of FROM there; what is
// not there yet is brought.
const MirrorPath = "mirror/"

// mirror is the registry's window to the outside.
type mirror struct {
	upstream *Upstream
	flights  singleflight.Group
}

// Mirror makes the registry bring what is asked for below [MirrorPath].
func (r *Registry) Mirror(u *Upstream) { r.mirror = &mirror{upstream: u} }

var mirrored = regexp.MustCompile(`^/v2/(mirror/([^/]+)/(.+))/manifests/([^/]+)$`)

// serveMirror answers requests for manifests below [MirrorPath]; blobs are there by the time that
// somebody knows of them.
func (r *Registry) serveMirror(w http.ResponseWriter, req *http.Request) bool {
	m := mirrored.FindStringSubmatch(req.URL.Path)
	if m == nil || r.mirror == nil || req.Method != http.MethodGet && req.Method != http.MethodHead {
		return false
	}
	repository, host, path, identifier := m[1], m[2], m[3], m[4]
	if ownTag.MatchString(identifier) {
		return false // a copy looks for it before it is there, and would wait for itself
	}
	if i := strings.LastIndex(host, "--"); i > 0 { // a path has no colon
		if _, err := strconv.ParseUint(host[i+2:], 10, 16); err == nil {
			host = host[:i] + ":" + host[i+2:]
		}
	}
	ref := host + "/" + path + ":" + identifier
	if strings.HasPrefix(identifier, "sha256:") {
		r.renewMirrored(repository, identifier) // before looking: what is there then stays
		if r.has(repository, identifier) {
			return false
		}
		ref = host + "/" + path + "@" + identifier
	}
	if err := r.bring(req.Context(), w, req, ref, repository); err != nil {
		status, code := http.StatusBadGateway, "UNAVAILABLE"
		switch leapcell.ErrorCode(err) {
		case leapcell.CodeUnprocessable, leapcell.CodeInvalid, leapcell.CodeNotFound:
			status, code = http.StatusNotFound, "MANIFEST_UNKNOWN"
		case leapcell.CodeForbidden, leapcell.CodeTooLarge:
			status, code = http.StatusForbidden, "DENIED"
		}
		r.cfg.Log.Warn("mirror: image not brought", "image", ref, "err", err)
		refuse(w, status, code, leapcell.ErrorMessage(err))
	}
	return true
}

// mirrorTag is that of an image below [MirrorPath]; its age is when it was last asked for.
func mirrorTag(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// ownTag is what mirrorTag makes, whatever the other registry has under such a name.
var ownTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}$`)

func (r *Registry) has(repository, digest string) bool {
	_, hex, _ := strings.Cut(digest, ":")
	ok, err := filepath.Glob(filepath.Join(r.cfg.Dir, "docker/registry/v2/repositories", filepath.FromSlash(repository), "_manifests/revisions/sha256", hex, "link"))
	return err == nil && len(ok) > 0
}

// bring copies an image and answers with its manifest. An index is passed on as it is: whoever
// asked will ask for the image of his platform next.
func (r *Registry) bring(ctx context.Context, w http.ResponseWriter, req *http.Request, ref, repository string) error {
	desc, err := r.mirror.upstream.Describe(ctx, ref)
	if err != nil {
		return err
	}
	r.renewMirrored(repository, desc.Digest.String())
	if !desc.MediaType.IsIndex() && !r.has(repository, desc.Digest.String()) {
		// Others may wait for the same one: it is not given up with this request.
		_, err, _ := r.mirror.flights.Do(repository+"@"+desc.Digest.String(), func() (any, error) {
			return r.mirror.upstream.Copy(context.WithoutCancel(ctx), ref, repository, mirrorTag(desc.Digest.String()), func(string) {})
		})
		if err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", string(desc.MediaType))
	w.Header().Set("Docker-Content-Digest", desc.Digest.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(desc.Manifest)))
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodGet {
		_, _ = w.Write(desc.Manifest)
	}
	return nil
}
