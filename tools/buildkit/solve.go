package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/diff/apply"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/winlayers"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// build solves the Dockerfile and leaves the image in [outPath].
func build(ctx context.Context, h *hub, o order) error {
	engine, err := newEngine(h, o)
	if err != nil {
		return fmt.Errorf("the build cache could not be opened: %w", err)
	}
	defer engine.Close()
	server := grpc.NewServer( // errors keep what they say about the Dockerfile
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor))
	engine.Register(server)
	line := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(line) }()
	defer server.Stop()
	c, err := client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return line.DialContext(ctx) }))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := prune(ctx, c, o.CacheBytes); err != nil {
		return err
	}
	options, err := solveOptions(o)
	if err != nil {
		return err
	}
	status := make(chan *client.SolveStatus)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		_, err := c.Solve(ctx, nil, options, status)
		return err
	})
	group.Go(func() error {
		show(os.Stdout, status)
		return nil
	})
	return group.Wait()
}

func solveOptions(o order) (client.SolveOpt, error) {
	source, err := fsutil.NewFS(contextPath)
	if err != nil {
		return client.SolveOpt{}, err
	}
	folder, err := fsutil.NewFS(filepath.Join(contextPath, path.Dir(o.Dockerfile)))
	if err != nil {
		return client.SolveOpt{}, err
	}
	attrs := map[string]string{
		"filename": path.Base(o.Dockerfile),
		// The front end is the one compiled in: "# syntax=" would fetch another and run it.
		"cmdline": "docker/dockerfile",
	}
	for name, value := range o.Args {
		attrs["build-arg:"+name] = value
	}
	secrets := map[string][]byte{}
	for name, value := range o.Secrets {
		secrets[name] = []byte(value)
	}
	return client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs,
		LocalMounts: map[string]fsutil.FS{"context": source, "dockerfile": folder},
		SharedKey:   "source", // what of the source is unchanged is not copied again
		Session:     []session.Attachable{secretsprovider.FromMap(secrets)},
		Exports: []client.ExportEntry{{
			Type: client.ExporterOCI, OutputDir: outPath,
			// Compressing costs more than it saves between node and registry.
			Attrs: map[string]string{"tar": "false", "compression": "uncompressed", "oci-mediatypes": "true"},
		}},
	}, nil
}

// prune keeps the cache within its bound, the most recently used first.
func prune(ctx context.Context, c *client.Client, keep int64) error {
	if keep <= 0 {
		return nil
	}
	if err := c.Prune(ctx, nil, client.PruneAll, client.WithKeepOpt(0, 0, keep, 0)); err != nil {
		return fmt.Errorf("the build cache could not be pruned: %w", err)
	}
	return nil
}

// engine is BuildKit with one worker whose commands are run by [runner].
type engine struct {
	*control.Controller
	worker *base.Worker
}

func (e *engine) Close() {
	_ = e.Controller.Close()
	_ = e.worker.Close()
}

func newEngine(h *hub, o order) (*engine, error) {
	options, err := workerOptions(h, o)
	if err != nil {
		return nil, err
	}
	w, err := base.NewWorker(context.Background(), options)
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, err
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(statePath, "cache.db"))
	if err != nil {
		return nil, err
	}
	history, err := boltutil.SafeOpen(filepath.Join(statePath, "history.db"), 0o600, quick)
	if err != nil {
		return nil, err
	}
	c, err := control.NewController(control.Opt{
		SessionManager: sessions, WorkerController: workers,
		Frontends:    map[string]frontend.Frontend{"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build)},
		CacheManager: solver.NewCacheManager(context.Background(), "local", cache, worker.NewCacheResultStorage(workers)),
		HistoryDB:    history, CacheStore: cache,
		LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(), GarbageCollect: w.GarbageCollect,
	})
	if err != nil {
		return nil, err
	}
	return &engine{c, w}, nil
}

// quick is for databases that are thrown away when they are broken.
var quick = &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true, Timeout: 5 * time.Second}

// workerOptions puts a worker together as BuildKit's own daemon does, with another executor.
func workerOptions(h *hub, o order) (opt base.WorkerOpt, err error) {
	root := filepath.Join(statePath, "worker")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return opt, err
	}
	kind, snaps, err := snapshotter(filepath.Join(root, "snapshots"))
	if err != nil {
		return opt, err
	}
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return opt, err
	}
	db, err := boltutil.Open(filepath.Join(root, "containerd.db"), 0o600, quick)
	if err != nil {
		return opt, err
	}
	all := ctdmetadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{kind: snaps})
	if err := all.Init(context.Background()); err != nil {
		return opt, err
	}
	content := containerdsnapshot.NewContentStore(all.ContentStore(), "buildkit")
	meta, err := metadata.NewStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return opt, err
	}
	id, err := base.ID(root)
	if err != nil {
		return opt, err
	}
	networks, _, _, err := netproviders.Providers(netproviders.Opt{Mode: "host"}) // the sandbox's own
	if err != nil {
		return opt, err
	}
	run, err := newRunner(filepath.Join(root, "steps"), o)
	if err != nil {
		return opt, err
	}
	return base.WorkerOpt{
		ID: id, Root: root, Labels: map[string]string{},
		Platforms:     []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())},
		MetadataStore: meta, NetworkProviders: networks, Executor: run,
		Snapshotter:    containerdsnapshot.NewSnapshotter(kind, all.Snapshotter(kind), "buildkit", nil),
		ContentStore:   content,
		Applier:        winlayers.NewFileSystemApplierWithWindows(content, apply.NewFileSystemApplier(content)),
		Differ:         winlayers.NewWalkingDiffWithWindows(content, walking.NewWalkingDiff(content)),
		RegistryHosts:  h.hosts,
		LeaseManager:   leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(all), "buildkit"),
		GarbageCollect: all.GarbageCollect,
		MountPoolRoot:  filepath.Join(root, "mounts"),
	}, nil
}

// snapshotter is overlay, or copies where the kernel has no overlay in user namespaces.
func snapshotter(root string) (kind string, s snapshots.Snapshotter, err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", nil, err
	}
	if err := overlayutils.Supported(root); err == nil {
		s, err = overlay.NewSnapshotter(root)
		return "overlay", s, err
	}
	fmt.Println("leapcell: this node has no overlay in user namespaces: layers are copied, which takes longer")
	s, err = native.NewSnapshotter(root + "-copied")
	return "native", s, err
}
