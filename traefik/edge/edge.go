package edge

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/routes"
	"github.com/leapcell/leapcell/traefik/static"
	"github.com/leapcell/leapcell/traefik/wake"
)

// Config is all that an edge needs to know.
type Config struct {
	ID     string // names this edge in reports
	Listen string // address for visitors
	// AdminListen is an address for /ping and /metrics; empty for none.
	AdminListen string
	// DataDir keeps the certificate for names that have none, static files, and the figures that
	// no control plane has taken yet; empty: new ones each start.
	DataDir string
	// StaticBytes bounds the static files that are kept there.
	StaticBytes int64
	AccessLog   string // a file, "-" for standard output, empty for none
	// MetricsServices bounds the services that have a label of their own in /metrics.
	MetricsServices int
	// Traces is the protocol by which spans are sent, "grpc" or "http/protobuf"; empty for no
	// spans. Where to, and all else, is in OpenTelemetry's own variables of the environment.
	Traces string
	// Drain is how long requests may take to end after the edge was told to stop.
	Drain time.Duration
	Log   *slog.Logger

	NomadAddr      string
	NomadToken     string
	NomadNamespace string
	// JobNamespaces are those of jobs that the platform did not deploy, which may ask for
	// the edge in their meta.
	JobNamespaces []string

	// APIAddrs are where load is reported, each control plane of the platform; none for nowhere.
	APIAddrs []string
	APIToken string
}

// Validate checks what has no default.
func (c Config) Validate() error {
	switch {
	case c.Listen == "":
		return leapcell.Errorf(leapcell.CodeInvalid, "no address to listen on: give --listen")
	case c.NomadAddr == "":
		return leapcell.Errorf(leapcell.CodeInvalid, "no Nomad address: give --nomad-addr")
	case c.ID == "":
		return leapcell.Errorf(leapcell.CodeInvalid, "the edge has no name: give --id")
	case c.MetricsServices < 0:
		return leapcell.Errorf(leapcell.CodeInvalid, "--metrics-services is %d: it must not be negative", c.MetricsServices)
	}
	return nil
}

// Serve runs Traefik's entry point as an edge has it, with handler behind it and nothing of
// an edge: what an edge adds is measured against it. It needs Listen and Log of cfg.
func Serve(ctx context.Context, cfg Config, handler http.Handler) error {
	front, err := newFront(cfg, handler, nil)
	if err != nil {
		return err
	}
	front.run(ctx)
	return nil
}

// Run serves until ctx ends, then lets the requests in flight end.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	client, err := api.NewClient(&api.Config{Address: cfg.NomadAddr, SecretID: cfg.NomadToken,
		Namespace: cfg.NomadNamespace, TLSConfig: api.DefaultConfig().TLSConfig})
	if err != nil {
		return fmt.Errorf("nomad at %s: %w", cfg.NomadAddr, err)
	}
	nomad := routes.Config{Client: client, Namespace: cfg.NomadNamespace, Jobs: cfg.JobNamespaces, Log: cfg.Log}
	table := routes.New()
	watch, err := newWatch(ctx, cfg)
	if err != nil {
		return err
	}
	defer watch.close(cfg.Log)
	middleware := wake.Config{Table: table, Scaler: routes.NewScaler(nomad, table), Observer: watch.observer(), Log: cfg.Log}
	if len(cfg.JobNamespaces) > 0 {
		middleware.Jobs = routes.NewKeeper(nomad, table, cfg.ID)
	}
	meters := newMeters(cfg, cfg.metersDir())
	fronts, err := newFronts(cfg, meters)
	if err != nil {
		return err
	}
	defer fronts.close()
	middleware.Static = fronts.server
	handler := wake.New(middleware)
	defer handler.Close()

	admin, err := newAdmin(cfg.AdminListen, watch.metrics(handler, table), table)
	if err != nil {
		return err
	}
	front, err := newFront(cfg, handler, watch.traces)
	if err != nil {
		return err
	}

	// The tables and the reports are needed until the last request has ended.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var helpers sync.WaitGroup
	helpers.Go(func() { table.Run(background, nomad) })
	ready := static.NewReady(fronts.server, table)
	helpers.Go(func() { ready.Run(background) })
	helpers.Go(func() { reportLoad(background, cfg, handler, ready) })
	helpers.Go(func() { meters.deliver(background) })
	helpers.Go(func() { admin.run(background) })
	defer helpers.Wait()
	defer stop()

	cfg.Log.Info("serving", "edge", cfg.ID, "listen", cfg.Listen, "nomad", cfg.NomadAddr)
	front.run(ctx)
	cfg.Log.Info("stopped")
	return nil
}
