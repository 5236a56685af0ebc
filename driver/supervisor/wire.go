package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
	"github.com/leapcell/leapcell/driver/network"
)

// wire makes the real things behind the seams of api.go. own is called when only the network
// and the image store are missing, of which a machine has one: another supervisor's must be given up by then.
func wire(cfg Config, log *slog.Logger, own func() error) (Options, error) {
	subnet, err := cfg.subnet()
	if err != nil {
		return Options{}, err
	}
	allowed, err := prefixes("allow_egress", cfg.AllowEgress)
	if err != nil {
		return Options{}, err
	}
	denied, err := prefixes("deny_egress", cfg.DenyEgress)
	if err != nil {
		return Options{}, err
	}
	launcher, err := cell.NewLauncher(cfg.Runtime, log)
	if err != nil {
		return Options{}, fmt.Errorf("runtime %s: %w", cfg.Runtime, err)
	}
	envs, err := newSealedEnvs(cfg)
	if err != nil {
		return Options{}, err
	}
	var figures MeterAPI
	if cfg.APIAddr != "" {
		if figures, err = newMeterClient(cfg); err != nil {
			return Options{}, err
		}
	}
	if err := own(); err != nil {
		return Options{}, err
	}
	store, err := image.New(image.Config{
		Dir: cfg.path("images"), Log: log, Registries: image.Registries(cfg.Credentials, log), Collect: cfg.collect(), Verify: cfg.verify(),
	})
	if err != nil {
		return Options{}, fmt.Errorf("image store: %w", err)
	}
	pool, err := network.New(network.Config{
		Name: cfg.Name, Subnet: subnet, Size: cfg.NetnsPool, AllowEgress: allowed, DenyEgress: denied, Log: log,
	})
	if err != nil {
		return Options{}, fmt.Errorf("network: %w", err)
	}
	return Options{
		Group: cfg.Group(), RunDir: cfg.RunDir(),
		RecordDir: cfg.path("tasks"), ScratchDir: cfg.path("scratch"), HandoverSocket: cfg.HandoverSocket(), MeterDir: cfg.path("meters"),
		SuspendAfter: cfg.suspendAfter(), Build: cfg.Build, DiskMB: cfg.DiskMB,
		Images: store, Networks: pools{pool}, Cells: cells{launcher}, Envs: envs,
		Caches:   newCaches(cfg.path("caches"), filepath.Join(cfg.RunDir(), "caches"), cfg.ImageHigh, log),
		MeterAPI: figures, Log: log,
	}, nil
}

type pools struct{ pool *network.Pool }

func (p pools) Get(ctx context.Context) (Namespace, error) { return wrap(p.pool.Get(ctx)) }
func (p pools) Adopt(name string) (Namespace, error)       { return wrap(p.pool.Adopt(name)) }
func (p pools) Put(n Namespace)                            { p.pool.Put(n.(namespace).Namespace) }
func (p pools) Settle()                                    { p.pool.Settle() }
func (p pools) ResolvConf() []byte                         { return p.pool.ResolvConf() }
func (p pools) Close() error                               { return p.pool.Close() }

type namespace struct{ *network.Namespace }

func (n namespace) NetnsName() string { return n.Name }
func (n namespace) NetnsPath() string { return n.Path }

func wrap(n *network.Namespace, err error) (Namespace, error) {
	if err != nil {
		return nil, err
	}
	return namespace{n}, nil
}

type cells struct{ launcher cell.Launcher }

func (c cells) Start(ctx context.Context, cfg cell.Config) (Cell, error) {
	started, err := c.launcher.Start(ctx, cfg)
	if err != nil {
		return nil, err // not a nil *cell.Cell in an interface
	}
	return started, nil
}

func (c cells) Adopt(cfg cell.Config, pid int) (Cell, error) {
	adopted, err := cell.Adopt(c.launcher, cfg, pid)
	if err != nil {
		return nil, err
	}
	return adopted, nil
}
