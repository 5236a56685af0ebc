package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
)

// Config says what the server serves, and how much of it.
type Config struct {
	Store       Store
	Deployer    Deployer
	Env         EnvSetter
	Hub         Hub
	Opener      EnvOpener
	Logs        ServiceLogger
	Instances   InstanceLister
	Scaler      Scaler
	Cleaner     Cleaner
	Runtimes    Runtimes
	Static      StaticFiles
	Uploads     Uploads
	Supply      Supply
	Checks      map[string]func(context.Context) error // by name of the part: "nomad", "vault", …
	Domain      string                                 // services get names below it
	PublicURL   string                                 // how visitors reach the edge: scheme and port are taken from it
	Workspace   string                                 // of new services
	Version     string
	UploadLimit int64 // bytes of a source archive
	CallsPerMin int   // API calls a minute and admin token: 100 to 10,000
	// Called hears of each call, with the pattern of its route ("" for none); nil for nobody.
	Called func(route string, status int, took time.Duration)
	Log    *slog.Logger
}

// The limits of the limit of calls: those of the smallest and of the largest plan.
const (
	minCallsPerMin = 100
	maxCallsPerMin = 10_000
)

// Validate checks the settings that an operator may get wrong.
func (c Config) Validate() error {
	if c.CallsPerMin < minCallsPerMin || c.CallsPerMin > maxCallsPerMin {
		return leapcell.Errorf(leapcell.CodeInvalid, "the limit of API calls a minute is %d: it must be from %d to %d",
			c.CallsPerMin, minCallsPerMin, maxCallsPerMin)
	}
	if c.UploadLimit < 1 {
		return leapcell.Errorf(leapcell.CodeInvalid, "the upload limit is %d bytes: it must be positive", c.UploadLimit)
	}
	if _, err := publicURL(c.PublicURL, "x."+c.Domain); err != nil {
		return err
	}
	return leapcell.ValidateName(c.Workspace)
}

// Store is the database, as far as the server needs it.
type Store interface {
	ServiceStore
	DeploymentStore
	TokenStore
	EnvStore
	MeterStore
}

// Deployer drives deployments. Its methods return as soon as the wish is stored; the work
// goes on without the request.
type Deployer interface {
	// Submit starts a deployment. archive is the uploaded tar.gz, nil when src names a git
	// repository; it is read before Submit returns.
	Submit(ctx context.Context, svc leapcell.Service, src leapcell.Source, origin leapcell.Origin, archive io.Reader) (leapcell.Deployment, error)
	// Rollback makes a former deployment live again, because by wants it; "" means the last
	// superseded one.
	Rollback(ctx context.Context, svc leapcell.Service, deploymentID string, by leapcell.Origin) (leapcell.Deployment, error)
	// Redeploy deploys again what dep was made of, because by wants it; src is its source.
	Redeploy(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, src leapcell.Source, by leapcell.Origin) (leapcell.Deployment, error)
	// Split sends percent of the requests to a former deployment; 0 ends it.
	Split(ctx context.Context, svc leapcell.Service, deploymentID string, percent int) (*leapcell.Split, error)
	// Traffic is the split in effect, nil for none.
	Traffic(ctx context.Context, svc leapcell.Service) (*leapcell.Split, error)
	// Cancel stops a deployment that is not done.
	Cancel(ctx context.Context, id string) error
	// ClearCache removes what nodes keep between builds of a service.
	ClearCache(ctx context.Context, svc leapcell.Service) error
	// DeleteService removes the service's route, jobs and images. It may be repeated.
	DeleteService(ctx context.Context, svc leapcell.Service) error
	// Log streams a deployment's log; when it follows, until the deployment is done.
	Log(ctx context.Context, id string, o leapcell.LogOptions) (io.ReadCloser, error)
	// Place is that of a deployment in the queue for builds, 1 for the next; 0 for none.
	Place(ctx context.Context, dep leapcell.Deployment) int
	// Wait blocks until the deployment is done or ctx ends.
	Wait(ctx context.Context, id string) (leapcell.Deployment, error)
}

// Runtimes are the operator's table and the systems that it stands on.
type Runtimes interface {
	Runtime(name string) (build.Runtime, error)
	Statuses(ctx context.Context) ([]build.Status, error)
	// Update makes the systems of a runtime anew and tells progress; it goes on when ctx ends.
	Update(ctx context.Context, r build.Runtime, progress func(string)) error
}

// ServiceLogger streams what a service's instances write: the last tail lines first, then,
// when it follows, what comes, until ctx ends.
type ServiceLogger interface {
	ServiceLogs(ctx context.Context, svc leapcell.Service, follow bool, tail int) (io.ReadCloser, error)
}

// InstanceLister lists the running instances of a service, by its name.
type InstanceLister interface {
	Instances(ctx context.Context, service string) ([]leapcell.Instance, error)
}

// Scaler hears what the edges see. Report must not block.
type Scaler interface {
	Report(leapcell.EdgeReport)
}

// Cleaner removes what is left of a service when its jobs are gone: sealed values and the
// key that opens them. It may be repeated.
type Cleaner interface {
	Clean(ctx context.Context, svc leapcell.Service) error
}

// Server serves the API.
type Server struct {
	cfg     Config
	engine  *gin.Engine
	stop    chan struct{} // closed when the server shuts down: ends streams and waits
	stopped sync.Once

	limitsMu sync.Mutex
	limits   map[string]*rate.Limiter // by token name

	health singleflight.Group
	hooks  chan struct{} // as many events are taken in at a time
}

// New makes a server.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	gin.SetMode(gin.ReleaseMode) // else gin prints its own lines
	s := &Server{cfg: cfg, engine: gin.New(), stop: make(chan struct{}), limits: map[string]*rate.Limiter{}, hooks: make(chan struct{}, hookCalls)}
	s.engine.RedirectTrailingSlash = false
	s.engine.ForwardedByClientIP = false
	s.engine.Use(s.requestID, s.logged, s.recovered)
	s.engine.NoRoute(func(c *gin.Context) {
		s.fail(c, leapcell.Errorf(leapcell.CodeNotFound, "there is no %s %s in this API", c.Request.Method, c.Request.URL.Path))
	})
	for _, r := range s.routes() {
		s.engine.Handle(r.Method, r.Path, s.access(r.Access), s.handler(r.handle))
	}
	return s, nil
}

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.engine.ServeHTTP(w, r) }

// Serve serves l until ctx ends, then lets calls finish for up to ten seconds. Streams and
// waits end at once: clients take them up again.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := NewHTTPServer(s, s.cfg.Log)
	hs.RegisterOnShutdown(s.Stop)
	return ServeHTTP(ctx, hs, l)
}

// Stop ends all streams and waits.
func (s *Server) Stop() { s.stopped.Do(func() { close(s.stop) }) }

// NewHTTPServer makes an HTTP server with the limits that every listener of leapcelld has.
// Bodies and answers have no overall limit of time: some are streams.
func NewHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// ServeHTTP runs hs on l until ctx ends and then shuts it down within ten seconds.
func ServeHTTP(ctx context.Context, hs *http.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- hs.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := hs.Shutdown(grace); err != nil {
		_ = hs.Close() // who has not finished by now is cut off
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// untilStop gives the context of a request that may take long: it ends with the request and
// when the server stops. Call cancel.
func (s *Server) untilStop(c *gin.Context) (ctx context.Context, cancel func()) {
	ctx, cancelCtx := context.WithCancel(c.Request.Context())
	go func() {
		select {
		case <-s.stop:
			cancelCtx()
		case <-ctx.Done():
		}
	}()
	return ctx, cancelCtx
}
