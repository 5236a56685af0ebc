package registry

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // where the images are kept
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// DefaultMinFree is the room below which nothing more is taken in.
const DefaultMinFree = 64 << 20

// Config says where images are kept and who may come in.
type Config struct {
	Dir         string
	Credentials Credentials
	MinFree     uint64 // bytes that stay free on the disk; 0 means [DefaultMinFree]
	Log         *slog.Logger
}

// Registry is the embedded registry; as a handler it serves the OCI distribution API.
type Registry struct {
	cfg    Config
	app    http.Handler
	mirror *mirror // nil without one
	// sweeping is held while something is removed, and shared by who stores a manifest or renews
	// the age of blobs: neither takes longer than the disk does.
	sweeping sync.RWMutex
}

// New makes a registry on cfg.Dir, which it makes when it is missing. ctx ends its
// background work.
func New(ctx context.Context, cfg Config) (r *Registry, err error) {
	if cfg.MinFree == 0 {
		cfg.MinFree = DefaultMinFree
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	// The library logs each request and each missing blob to the one global logger of a
	// package that nothing else here uses. What matters is logged by Registry itself.
	logrus.SetOutput(io.Discard)
	// The library panics on settings that it cannot work with.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("registry on %s: %v", cfg.Dir, p)
		}
	}()
	return &Registry{cfg: cfg, app: handlers.NewApp(ctx, libraryConfig(cfg.Dir))}, nil
}

func libraryConfig(dir string) *configuration.Configuration {
	c := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem": configuration.Parameters{"rootdirectory": dir},
		"delete":     configuration.Parameters{"enabled": true},
		"redirect":   configuration.Parameters{"disable": true},
	}}
	c.HTTP.Secret = rand.Text() // signs the state of uploads; they do not outlive the process
	return c
}

// ServeHTTP serves the OCI distribution API to who has the credentials.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !r.allowed(req) {
		w.Header().Set("WWW-Authenticate", `Basic realm="leapcell"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "username or password is wrong")
		return
	}
	if req.URL.Path == "/v2/" {
		// The library finds its routes by a router that Traefik replaces by an older one,
		// which does not tell it that this path needs no repository.
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		_, _ = io.WriteString(w, "{}")
		return
	}
	if r.serveMirror(w, req) {
		return
	}
	if !takesIn(req) {
		r.serveAged(w, req)
		return
	}
	if text := r.noRoom(); text != "" {
		r.refuseFull(w, req, text)
		return
	}
	r.serveAged(&errorWriter{ResponseWriter: w, registry: r, req: req}, req)
}

func (r *Registry) allowed(req *http.Request) bool {
	user, pass, ok := req.BasicAuth()
	c := r.cfg.Credentials
	// Both are compared always, in constant time.
	same := subtle.ConstantTimeCompare([]byte(user), []byte(c.Username)) & subtle.ConstantTimeCompare([]byte(pass), []byte(c.Password))
	return ok && same == 1
}

// takesIn reports whether the request writes to the disk.
func takesIn(req *http.Request) bool {
	return req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch
}

// noRoom says that the disk is full, or "" when it is not.
func (r *Registry) noRoom() string {
	var st unix.Statfs_t
	if err := unix.Statfs(r.cfg.Dir, &st); err != nil {
		return "" // writing will say what is wrong
	}
	if free := st.Bavail * uint64(st.Bsize); free < r.cfg.MinFree {
		return fmt.Sprintf("the registry's disk is full: %d MB are free, at least %d MB must stay free; free some space, then repeat",
			free>>20, r.cfg.MinFree>>20)
	}
	return ""
}

func (r *Registry) refuseFull(w http.ResponseWriter, req *http.Request, text string) {
	r.cfg.Log.Error("registry: disk full", "path", req.URL.Path, "reason", text)
	refuse(w, http.StatusInsufficientStorage, "DENIED", text)
}

// refuse answers as the OCI distribution API describes errors.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": code, "message": message}},
	})
}

// errorWriter puts a clear text in place of the library's answer when a write failed
// because the disk became full on the way.
type errorWriter struct {
	http.ResponseWriter
	registry *Registry
	req      *http.Request
	replaced bool
}

// WriteHeader lets all but failures pass.
func (w *errorWriter) WriteHeader(status int) {
	if status < 500 {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	if text := w.registry.noRoom(); text != "" {
		w.replaced = true
		w.registry.refuseFull(w.ResponseWriter, w.req, text)
		return
	}
	w.registry.cfg.Log.Error("registry: request failed", "method", w.req.Method, "path", w.req.URL.Path, "status", status)
	w.ResponseWriter.WriteHeader(status)
}

// Write drops the library's text when it was replaced.
func (w *errorWriter) Write(b []byte) (int, error) {
	if w.replaced {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through.
func (w *errorWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
