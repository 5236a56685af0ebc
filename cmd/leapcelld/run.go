package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell/api/build"
	"github.com/leapcell/leapcell/api/cdn"
	"github.com/leapcell/leapcell/api/deploy"
	"github.com/leapcell/leapcell/api/hook"
	"github.com/leapcell/leapcell/api/metrics"
	"github.com/leapcell/leapcell/api/nomad"
	"github.com/leapcell/leapcell/api/registry"
	"github.com/leapcell/leapcell/api/server"
	"github.com/leapcell/leapcell/api/source"
	"github.com/leapcell/leapcell/api/store"
	"github.com/leapcell/leapcell/api/supply"
	"github.com/leapcell/leapcell/api/vault"
	"github.com/leapcell/leapcell/api/wake"
)

// workspace is the only one so far.
const workspace = "default"

// scalerLease is the Nomad variable that says which control plane sizes the services.
const scalerLease = "leapcell/leases/scaler"

// run plugs the control plane together, in the order in which a deployment meets its parts,
// and serves until ctx ends.
func run(ctx context.Context, args []string, env func(string) string, stdout io.Writer) (err error) {
	cfg, err := readConfig(args, env, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: cfg.LogLevel}))

	unlock, err := lockDataDir(ctx, cfg.DataDir, cfg.Standby, log)
	if errors.Is(err, context.Canceled) {
		return nil // ended while it stood by
	}
	if err != nil {
		return err
	}
	defer unlock()
	db, err := store.Open(ctx, cfg.path("leapcell.db"))
	if err != nil {
		return err
	}
	defer closing(&err, db.Close)
	if err := makeTokens(ctx, cfg, db); err != nil {
		return err
	}

	sealer, err := vault.New(vault.Config{Address: cfg.VaultAddr, TokenFile: cfg.VaultTokenFile, Transit: cfg.VaultTransit, Log: log})
	if err != nil {
		return err
	}
	cluster, err := newNomad(cfg)
	if err != nil {
		return err
	}
	images, pushes, err := newRegistry(ctx, cfg, log)
	if err != nil {
		return err
	}
	id, err := identity(cfg.path("id"))
	if err != nil {
		return err
	}
	scaler := wake.New(wake.Config{Namespace: cfg.NomadNamespace, Store: db, Nomad: cluster, Log: log})
	keys := hook.NewKeys(db, sealer)
	sources, err := source.New(source.Config{
		Dir: cfg.path("source"), MaxUpload: int64(cfg.UploadLimit), AllowFileURLs: cfg.AllowFileURLs,
		Networks: cfg.SourceNetworks, Access: keys.Access, Heads: build.Heads,
	})
	if err != nil {
		return err
	}
	files, bucket, err := newOrigin(cfg, pushes)
	if err != nil {
		return err
	}
	chain, err := newChain(cfg, log, sealer, pushes)
	if err != nil {
		return err
	}
	deployer, builder, err := newDeployer(cfg, log, db, cluster, images, pushes, scaler, sources, files, chain)
	if err != nil {
		return err
	}
	defer closing(&err, builder.Close)
	defer closing(&err, deployer.Close)
	keeper := vault.NewKeeper(vault.KeeperConfig{Store: db, Variables: cluster, Sealer: sealer, Changed: deployer.EnvChanged, Log: log})

	hub := hook.New(hook.Config{Store: db, Keys: keys, Sources: sources, Deployer: deployer, Networks: cfg.SourceNetworks, Log: log})
	figures := metrics.New(metrics.Config{Scaler: scaler, Usage: db, Images: deployer, Services: cfg.MetricsServices})
	checks := map[string]func(context.Context) error{
		"store": db.Ping, "nomad": cluster.Health, "vault": sealer.Health, "registry": pushes.Health,
	}
	if bucket != nil {
		checks["static"] = bucket.Health
	}
	api, err := server.New(server.Config{
		Store: db, Deployer: deployer, Env: keeper, Opener: sealer, Hub: hub, Logs: deployer, Instances: cluster, Scaler: scaler, Cleaner: keeper, Runtimes: builder, Static: files, Uploads: sources, Supply: chain,
		Checks: checks, Domain: cfg.Domain, PublicURL: cfg.PublicURL, Workspace: workspace, Version: version(),
		UploadLimit: int64(cfg.UploadLimit), CallsPerMin: cfg.CallsPerMinute, Called: figures.Called, Log: log,
	})
	if err != nil {
		return err
	}
	at, err := listenAll(ctx, cfg)
	if err != nil {
		return err
	}

	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return api.Serve(ctx, at.public) })
	work.Go(func() error { return serveRegistry(ctx, images, at.private, log) })
	work.Go(func() error { return serveAdmin(ctx, figures, at.admin, log) })
	work.Go(func() error { return tryBucket(ctx, bucket, log) })
	work.Go(func() error { sealer.KeepToken(ctx); return nil })
	work.Go(func() error { keeper.Run(ctx); return nil })
	work.Go(func() error { hub.Run(ctx); return nil })
	work.Go(func() error { deployer.RunCollector(ctx); return nil })
	work.Go(func() error {
		return ignoreCancel(cluster.Lead(ctx, nomad.Lease{Path: scalerLease, Holder: id, Log: log}, scaler.Run))
	})
	work.Go(func() error { return ignoreCancel(deployer.Resume(ctx)) })
	log.Info("leapcelld is up", "api", at.public.Addr().String(), "registry", at.private.Addr().String(), "version", version())
	return work.Wait()
}

func newNomad(cfg Config) (*nomad.Client, error) {
	token, err := readToken("--nomad-token-file", cfg.NomadTokenFile)
	if err != nil {
		return nil, err
	}
	return nomad.New(nomad.Config{Address: cfg.NomadAddr, Token: token, Namespace: cfg.NomadNamespace})
}

func newRegistry(ctx context.Context, cfg Config, log *slog.Logger) (*registry.Registry, *registry.Client, error) {
	cred, err := registry.LoadCredentials(cfg.RegistryCredentialsFile, cfg.RegistryAddress)
	if err != nil {
		return nil, nil, err
	}
	images, err := registry.New(ctx, registry.Config{Dir: cfg.path("registry"), Credentials: cred, Log: log})
	if err != nil {
		return nil, nil, err
	}
	return images, registry.NewClient(cred), nil
}

// newOrigin gives what edges fetch static files from, and the bucket they are in if it is one.
func newOrigin(cfg Config, pushes *registry.Client) (*cdn.Origin, *cdn.S3, error) {
	if cfg.Static.Bucket != "" {
		bucket, err := cdn.NewS3(cfg.Static)
		if err != nil {
			return nil, nil, err
		}
		files, err := cdn.New(bucket, pushes, cfg.path("static-tmp"))
		return files, bucket, err
	}
	folder, err := cdn.NewLocal(cfg.path("static"))
	if err != nil {
		return nil, nil, err
	}
	files, err := cdn.New(folder, pushes, cfg.path("static-tmp"))
	return files, nil, err
}

// tryBucket says at the start what each deployment with static files would wait for.
func tryBucket(ctx context.Context, bucket *cdn.S3, log *slog.Logger) error {
	if bucket == nil {
		return nil
	}
	if err := bucket.Health(ctx); err != nil && ctx.Err() == nil {
		log.Error("static files can be neither stored nor fetched", "err", err)
	}
	return nil
}

// newChain gives what signs and describes images.
func newChain(cfg Config, log *slog.Logger, sealer *vault.Sealer, pushes *registry.Client) (*supply.Chain, error) {
	c := supply.Config{Dir: cfg.path("layers"), Registry: pushes, Builder: cfg.PublicURL + "/leapcelld", Version: version(), Log: log}
	if cfg.SignKey != "" {
		signer, err := sealer.Signer(cfg.SignKey)
		if err != nil {
			return nil, err
		}
		c.Signer = signer
	}
	return supply.New(c)
}

func newDeployer(cfg Config, log *slog.Logger, db *store.Store, cluster *nomad.Client, images *registry.Registry, pushes *registry.Client, edges deploy.Edges, sources *source.Store, files *cdn.Origin, chain *supply.Chain) (*deploy.Deployer, *build.Builder, error) {
	runtimes, err := build.ReadRuntimes(cfg.RuntimesFile)
	if err != nil {
		return nil, nil, err
	}
	builder, err := build.New(build.Config{
		Dir: cfg.path("base"), Images: pushes, Runtimes: runtimes, Suite: cfg.BaseSuite, MaxAge: cfg.BaseAge, AptConfigDir: cfg.AptConfigDir, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	mirrors, err := registry.ParseMirrors(cfg.Mirrors)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("--mirrors: %w", err), builder.Close())
	}
	upstream, err := registry.NewUpstream(registry.UpstreamConfig{Mirrors: mirrors, Own: pushes})
	if err != nil {
		return nil, nil, errors.Join(err, builder.Close())
	}
	images.Mirror(upstream)
	deployer, err := deploy.New(deploy.Config{
		Dir: cfg.path("deploy"), Namespace: cfg.NomadNamespace, RegistryAddress: cfg.RegistryAddress,
		Store: db, Env: db, Nomad: cluster, Sources: sources, Builder: builder, Images: pushes, Upstream: upstream, Edges: edges, Fronts: files, Supply: chain, Storage: images, Log: log,
		Plan: cfg.Plan, CollectAge: cfg.CollectAge,
	})
	if err != nil {
		return nil, nil, errors.Join(err, builder.Close())
	}
	return deployer, builder, nil
}

// serveRegistry serves nodes until ctx ends.
func serveRegistry(ctx context.Context, images http.Handler, l net.Listener, log *slog.Logger) error {
	return server.ServeHTTP(ctx, server.NewHTTPServer(images, log), l)
}

func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, address, err)
	}
	return l, nil
}

// listeners are the ports of a control plane.
type listeners struct{ public, private, admin net.Listener } // admin is nil for none

func listenAll(ctx context.Context, cfg Config) (at listeners, err error) {
	if at.public, err = listen(ctx, "--listen", cfg.Listen); err != nil {
		return at, err
	}
	if at.private, err = listen(ctx, "--registry-listen", cfg.RegistryListen); err != nil {
		return at, errors.Join(err, at.public.Close())
	}
	if cfg.AdminListen == "" {
		return at, nil
	}
	if at.admin, err = listen(ctx, "--admin-listen", cfg.AdminListen); err != nil {
		return at, errors.Join(err, at.public.Close(), at.private.Close())
	}
	return at, nil
}

// serveAdmin serves who watches the control plane, until ctx ends.
func serveAdmin(ctx context.Context, figures http.Handler, l net.Listener, log *slog.Logger) error {
	if l == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", figures)
	return server.ServeHTTP(ctx, server.NewHTTPServer(mux, log), l)
}

// closing closes at the end of run and keeps the error, unless there is one already.
func closing(err *error, closer func() error) {
	if closeErr := closer(); closeErr != nil && *err == nil {
		*err = closeErr
	}
}

func ignoreCancel(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
