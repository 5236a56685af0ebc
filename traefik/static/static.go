package static

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
	"github.com/leapcell/leapcell/traefik/wake"
)

// Config is what a [Server] needs to know.
type Config struct {
	Dir      string   // of the files that are here; nobody else may write to it
	MaxBytes int64    // of them together
	APIs     []string // addresses of the control planes, which give what is not here
	Token    string   // for them
	// Count is told of each answer before its end is sent: one request, and the bytes of its body.
	// What was not sent after all is taken back. nil for nobody.
	Count func(service string, requests, bytes int64)
	Log   *slog.Logger
}

// maxListed bounds the files in all lists that are in memory.
const maxListed = 500_000

// Server serves front ends. It is safe for concurrent use.
type Server struct {
	cfg    Config
	cache  *cache
	origin *origin
	flight singleflight.Group
	log    *slog.Logger

	mu    sync.Mutex
	sites map[string]*site // by manifest
	total int              // files of all sites
	tick  atomic.Int64     // grows with each use
	said  atomic.Int64     // when it was last logged that files cannot be had
}

// site is a front end's list, by path.
type site struct {
	files    map[string]*front.File
	fallback *front.File
	used     atomic.Int64 // the server's tick at the last use
}

// New makes a server. What an earlier one had in the folder is taken over.
func New(cfg Config) (*Server, error) {
	c, err := openCache(cfg.Dir, cfg.MaxBytes)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, cache: c, origin: newOrigin(cfg.APIs, cfg.Token), log: cfg.Log, sites: map[string]*site{}}, nil
}

// Serve answers a request if a file of the route is meant by it. other is the other route of
// two that share the requests, or nil: pages of the one ask for files of the other.
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, route, other *leapcell.Route) wake.StaticResult {
	whole := whole(route)
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !reads && whole {
		w.Header().Set("Allow", "GET, HEAD")
		return s.say(w, r, route, http.StatusMethodNotAllowed, "This site takes GET and HEAD only")
	}
	if !reads {
		return wake.StaticResult{}
	}
	mine, err := s.site(r.Context(), route)
	if err != nil {
		// A name with a hash means the same in every list, and no instance has a former one's.
		if f := s.former(r, route, other); f != nil {
			return s.file(w, r, route, f, http.StatusOK)
		}
		return s.without(r.Context(), whole, err)
	}
	if mine != nil {
		if f := mine.files[r.URL.Path]; f != nil {
			return s.file(w, r, route, f, http.StatusOK)
		}
	}
	if other != nil {
		if theirs, err := s.site(r.Context(), other); err == nil && theirs != nil {
			// Only what belongs to a page: under other names each has its own.
			if f := theirs.files[r.URL.Path]; f != nil && f.Immutable {
				return s.file(w, r, other, f, http.StatusOK)
			}
		}
	}
	if f := s.former(r, route, other); f != nil {
		return s.file(w, r, route, f, http.StatusOK)
	}
	if !whole {
		return wake.StaticResult{}
	}
	return s.page(w, r, route, mine)
}

// formerWait is how long a file may wait for the list of a former front end. Usually it is here.
const formerWait = time.Second

// former gives the file that only pages of a former deployment ask for, nil if there is none.
func (s *Server) former(r *http.Request, route, other *leapcell.Route) *front.File {
	digests := route.Former
	if len(digests) == 0 && other != nil {
		digests = other.Former // the service's own route has them
	}
	if len(digests) == 0 || path.Ext(r.URL.Path) == "" { // names with a hash have an extension
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), formerWait)
	defer cancel()
	for _, digest := range digests {
		site := s.listed(digest)
		if site == nil {
			var err error
			if site, err = s.await(ctx, route.ServiceID, digest); err != nil {
				continue
			}
		}
		if f := site.files[r.URL.Path]; f != nil && f.Immutable {
			return f
		}
	}
	return nil
}

func whole(route *leapcell.Route) bool { return route.Static != nil && route.Static.Whole }

// page answers with what a path stands for in a whole site that is no file's own.
func (s *Server) page(w http.ResponseWriter, r *http.Request, route *leapcell.Route, site *site) wake.StaticResult {
	p := r.URL.Path
	if folder, ok := strings.CutSuffix(p, "/"); ok {
		if f := site.files[folder+"/index.html"]; f != nil {
			return s.file(w, r, route, f, http.StatusOK)
		}
	} else if f := site.files[p+".html"]; f != nil {
		return s.file(w, r, route, f, http.StatusOK)
	} else if site.files[p+"/index.html"] != nil {
		// The page's own links are relative to the folder.
		to := url.URL{Path: p + "/", RawQuery: r.URL.RawQuery}
		w.Header().Set("Location", to.String())
		w.Header().Set("Cache-Control", "no-cache")
		return s.say(w, r, route, http.StatusMovedPermanently, "Moved to "+to.Path)
	}
	f := site.fallback
	switch {
	case f != nil && path.Base(f.Path) == "404.html":
		return s.file(w, r, route, f, http.StatusNotFound)
	case f != nil && wantsPage(r):
		return s.file(w, r, route, f, http.StatusOK)
	}
	w.Header().Set("Cache-Control", "no-cache")
	return s.say(w, r, route, http.StatusNotFound, "There is nothing at this address")
}

// wantsPage tells somebody who goes to a page from a page that asks for one of its files: a
// script that is not there must not become a page.
func wantsPage(r *http.Request) bool {
	return !strings.Contains(path.Base(r.URL.Path), ".") || strings.Contains(r.Header.Get("Accept"), "text/html")
}

// without is the answer when what is needed cannot be had: beside an instance, it may have it.
func (s *Server) without(ctx context.Context, whole bool, err error) wake.StaticResult {
	if ctx.Err() == nil && !errors.Is(err, errSoon) && s.mayLog() {
		s.log.Warn("static files cannot be served", "error", err)
	}
	return wake.StaticResult{Missing: whole}
}

// logPause is between two lines about files that cannot be had: there is a request for each.
const logPause = 10 * time.Second

func (s *Server) mayLog() bool {
	last, now := s.said.Load(), time.Now().UnixNano()
	return now-last > int64(logPause) && s.said.CompareAndSwap(last, now)
}

// errSoon is that a list is being fetched.
var errSoon = errors.New("the list of files is on its way")

// site gives the list of a route, nil if it has none. An app's requests do not wait for it: its
// instances can answer them as well.
func (s *Server) site(ctx context.Context, route *leapcell.Route) (*site, error) {
	if route.Static == nil {
		return nil, nil
	}
	digest := route.Static.Manifest
	if found := s.listed(digest); found != nil {
		return found, nil
	}
	if !route.Static.Whole && front.IsSum(digest) {
		s.flight.DoChan("list "+digest, func() (any, error) { return s.load(route.ServiceID, digest) })
		return nil, errSoon
	}
	return s.await(ctx, route.ServiceID, digest)
}

// listed gives a list that is in memory, else nil.
func (s *Server) listed(digest string) *site {
	s.mu.Lock()
	found := s.sites[digest]
	s.mu.Unlock()
	if found != nil {
		found.used.Store(s.tick.Add(1))
	}
	return found
}

// await gives a list, and waits for it.
func (s *Server) await(ctx context.Context, service, digest string) (*site, error) {
	if !front.IsSum(digest) {
		return nil, errors.New("the route names no list of files")
	}
	done := s.flight.DoChan("list "+digest, func() (any, error) { return s.load(service, digest) })
	select {
	case got := <-done:
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(*site), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// load reads a list, from the disk or from the origin.
func (s *Server) load(service, digest string) (*site, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	f, err := s.open(ctx, service, front.Content{SHA256: digest, Size: sizeUnknown})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, front.MaxManifestBytes+1))
	if err != nil {
		return nil, err
	}
	m, err := front.ParseManifest(b)
	if err != nil {
		return nil, err
	}
	out := &site{files: make(map[string]*front.File, len(m.Files))}
	for i := range m.Files {
		out.files[m.Files[i].Path] = &m.Files[i]
	}
	out.fallback = out.files[m.Fallback]
	out.used.Store(s.tick.Add(1))
	s.remember(digest, out)
	return out, nil
}

// remember keeps a list, and forgets those that were not used for longest.
func (s *Server) remember(digest string, found *site) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sites[digest] == nil {
		s.sites[digest] = found
		s.total += len(found.files)
	}
	for s.total > maxListed && len(s.sites) > 1 {
		oldest := ""
		for d, one := range s.sites {
			if d != digest && (oldest == "" || one.used.Load() < s.sites[oldest].used.Load()) {
				oldest = d
			}
		}
		s.total -= len(s.sites[oldest].files)
		delete(s.sites, oldest)
	}
}

// sizeUnknown is that of lists.
const sizeUnknown = -1

// open gives a content that is here, or brings it: once, however many ask for it.
func (s *Server) open(ctx context.Context, service string, c front.Content) (*os.File, error) {
	for range 3 { // in a cache that is too small it may have gone already
		f, err := s.cache.open(c)
		if f != nil || err != nil {
			return f, err
		}
		done := s.flight.DoChan(c.SHA256, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
			defer cancel()
			return nil, s.bring(ctx, service, c)
		})
		select {
		case got := <-done:
			if got.Err != nil {
				return nil, got.Err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, leapcell.Errorf(leapcell.CodeUnavailable, "the edge has no room for a file of %d bytes", c.Size)
}

func (s *Server) bring(ctx context.Context, service string, c front.Content) error {
	body, err := s.origin.fetch(ctx, service, c.SHA256)
	if err != nil {
		return err
	}
	defer body.Close()
	begun := time.Now()
	if err := s.cache.put(c, body); err != nil {
		return err
	}
	s.log.Debug("static content fetched", "service", service, "content", c.SHA256, "bytes", c.Size, "took", time.Since(begun).String())
	return nil
}
