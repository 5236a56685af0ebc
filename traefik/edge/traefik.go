package edge

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/rs/zerolog/log"
	ptypes "github.com/traefik/paerser/types"
	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/config/runtime"
	"github.com/traefik/traefik/v3/pkg/config/static"
	"github.com/traefik/traefik/v3/pkg/observability/metrics"
	"github.com/traefik/traefik/v3/pkg/observability/tracing"
	"github.com/traefik/traefik/v3/pkg/plugins"
	"github.com/traefik/traefik/v3/pkg/proxy/httputil"
	"github.com/traefik/traefik/v3/pkg/safe"
	"github.com/traefik/traefik/v3/pkg/server"
	"github.com/traefik/traefik/v3/pkg/server/middleware"
	"github.com/traefik/traefik/v3/pkg/server/service"
	"github.com/traefik/traefik/v3/pkg/tcp"
	"github.com/traefik/traefik/v3/pkg/tls"

	"github.com/leapcell/leapcell"
)

const (
	entryPoint   = "web"
	providerName = "leapcell"
	pluginName   = "wake"

	idleTimeout = 180 * time.Second
	// readTimeout is for a whole request: when it is over, net/http ends the request even
	// while it is being answered. So it must be longer than the longest request may take.
	readTimeout = leapcell.MaxStartTimeout + leapcell.HoldGrace + leapcell.RequestTimeout + 30*time.Second
	// headerBytes is what net/http lets in; the middleware has the contract's limits and
	// can say which one was passed.
	headerBytes = 1 << 20
)

// front is Traefik as we assemble it: what its own main does, less what we do not use.
type front struct {
	pool    *safe.Pool
	points  server.TCPEntryPoints
	watcher *server.ConfigurationWatcher
	observe *middleware.ObservabilityMgr
	ready   chan struct{} // closed when the first configuration is in place
}

// newFront assembles it before handler; spans is nil for none.
func newFront(cfg Config, handler http.Handler, spans *traces) (*front, error) {
	setTraefikLog(cfg.Log)
	conf := staticConfig(cfg)
	certificate, err := defaultCertificate(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	var tracer *tracing.Tracer
	if spans != nil {
		tracer, handler = spans.traefiks(), spans.passOn(handler)
	}

	f := &front{pool: safe.NewPool(context.Background()), ready: make(chan struct{})}
	registry := metrics.NewVoidRegistry()
	tlsManager := tls.NewManager(nil)
	f.pool.GoCtx(tlsManager.Run)
	f.observe = middleware.NewObservabilityMgr(conf, registry, nil, nil, tracer, nil)
	f.points, err = server.NewTCPEntryPoints(conf.EntryPoints, nil, registry)
	if err != nil {
		f.pool.Stop()
		return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, "cannot listen on "+cfg.Listen)
	}

	transports := service.NewTransportManager(nil)
	proxies := httputil.NewProxyBuilder(transports, nil)
	dialers := tcp.NewDialerManager(nil)
	services := service.NewManagerFactory(conf, f.pool, f.observe, transports, proxies, nil)
	routers, err := server.NewRouterFactory(conf, services, tlsManager, f.observe, &native{handler}, dialers)
	if err != nil {
		f.pool.Stop()
		return nil, fmt.Errorf("traefik: %w", err)
	}

	f.watcher = server.NewConfigurationWatcher(f.pool, &provider{certificate}, []string{entryPoint}, providerName)
	f.watcher.AddListener(func(c dynamic.Configuration) {
		tlsManager.UpdateConfigs(context.Background(), c.TLS.Stores, c.TLS.Options, c.TLS.Certificates)
		transports.Update(c.HTTP.ServersTransports)
		dialers.Update(c.TCP.ServersTransports)
	})
	var first sync.Once
	f.watcher.AddListener(func(c dynamic.Configuration) {
		byPoint, _ := routers.CreateRouters(runtime.NewConfig(c))
		f.points.Switch(byPoint)
		first.Do(func() { close(f.ready) })
	})
	return f, nil
}

// run serves until ctx ends and the requests in flight have ended or had their time. The
// listener is open since newFront; connections are taken once the router is there, so that
// nobody gets Traefik's 404 in between.
func (f *front) run(ctx context.Context) {
	f.watcher.Start()
	select {
	case <-f.ready:
		f.points.Start()
		<-ctx.Done()
	case <-ctx.Done():
	}
	f.points.Stop()
	f.pool.Stop()
	f.observe.Close()
}

func staticConfig(cfg Config) static.Configuration {
	point := &static.EntryPoint{Address: cfg.Listen}
	point.SetDefaults()
	point.Transport.RespondingTimeouts.ReadTimeout = ptypes.Duration(readTimeout)
	// Nor may a visitor who takes nothing of an answer keep a place for longer.
	point.Transport.RespondingTimeouts.WriteTimeout = ptypes.Duration(readTimeout)
	point.Transport.RespondingTimeouts.IdleTimeout = ptypes.Duration(idleTimeout)
	point.Transport.LifeCycle.GraceTimeOut = ptypes.Duration(cfg.Drain)
	point.HTTP.MaxHeaderBytes = headerBytes
	untouched := false // paths reach the app as they were sent
	point.HTTP.SanitizePath = &untouched

	conf := static.Configuration{
		Global:      &static.Global{},
		EntryPoints: static.EntryPoints{entryPoint: point},
		Providers:   &static.Providers{},
	}
	if cfg.Traces != "" {
		conf.Tracing = &static.Tracing{}
	}
	return conf
}

// native serves the middleware plugin {wake: {}} with our handler. Traefik constructs
// middlewares anew at each reload and for each router: the handler and its state are not
// part of that. It is a pointer because Traefik asks whether it is nil.
type native struct{ handler http.Handler }

func (n *native) Build(name string, _ map[string]any, middlewareName string) (plugins.Constructor, error) {
	if name != pluginName {
		return nil, fmt.Errorf("middleware %s wants the plugin %q: there is %q only", middlewareName, name, pluginName)
	}
	return func(context.Context, http.Handler) (http.Handler, error) { return n.handler, nil }, nil
}

// provider gives Traefik its configuration: everything goes to wake.
type provider struct{ certificate tls.Certificate }

func (p *provider) Init() error { return nil }

func (p *provider) Provide(out chan<- dynamic.Message, _ *safe.Pool) error {
	nowhere := &dynamic.ServersLoadBalancer{} // without servers: wake answers everything itself
	nowhere.SetDefaults()
	router := func(tls *dynamic.RouterTLSConfig) *dynamic.Router {
		return &dynamic.Router{EntryPoints: []string{entryPoint}, Rule: "PathPrefix(`/`)", TLS: tls,
			Middlewares: []string{pluginName}, Service: "nowhere", Priority: 1}
	}
	out <- dynamic.Message{ProviderName: providerName, Configuration: &dynamic.Configuration{
		HTTP: &dynamic.HTTPConfiguration{
			Routers:     map[string]*dynamic.Router{"all": router(nil), "all-tls": router(&dynamic.RouterTLSConfig{})},
			Middlewares: map[string]*dynamic.Middleware{pluginName: {Plugin: map[string]dynamic.PluginConf{pluginName: {}}}},
			Services:    map[string]*dynamic.Service{"nowhere": {LoadBalancer: nowhere}},
		},
		// Without a certificate of ours Traefik makes an RSA key at each reload.
		TLS: &dynamic.TLSConfiguration{Stores: map[string]tls.Store{
			tls.DefaultTLSStoreName: {DefaultCertificate: &p.certificate},
		}, Options: map[string]tls.Options{tls.DefaultTLSConfigName: tls.DefaultTLSOptions}},
	}}
	return nil
}

// setTraefikLog makes Traefik's global logger as loud as ours, on standard error.
func setTraefikLog(ours *slog.Logger) {
	level := zerolog.ErrorLevel
	if ours.Enabled(context.Background(), slog.LevelDebug) {
		level = zerolog.DebugLevel
	}
	zerolog.SetGlobalLevel(level)
	log.Logger = zerolog.New(os.Stderr).With().Timestamp().Str("part", "traefik").Logger().Level(level)
	zerolog.DefaultContextLogger = &log.Logger
}
