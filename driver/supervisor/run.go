package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that the platform has a supervisor already.
var ErrRunning = errors.New("another supervisor has the state folder")

// Run is a supervisor's process from beginning to end: until ctx is done or somebody asks
// for its shutdown. When ctx ends it, running instances stay: the next one takes them over.
func Run(ctx context.Context, cfg Config) error {
	log := newLog(cfg.LogLevel)
	unlock, err := lock(cfg.path("supervisor.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	// Nothing of what started us may decide about instances or reach Vault and Nomad by
	// other settings than ours.
	os.Clearenv()
	_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if err := leaveCgroup(cfg.Group()); err != nil {
		log.Warn("no cgroup of its own: whoever stops the agent's cgroup stops the supervisor too", "error", err)
	}
	// Apps are children of short-lived runtimes: with this they become ours to wait for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("subreaper: %w", err)
	}
	if err := prepareRunDir(cfg.RunDir()); err != nil {
		return err
	}
	for _, dir := range []string{"scratch", "caches", "tasks"} {
		if err := os.MkdirAll(cfg.path(dir), 0o700); err != nil {
			return err
		}
	}
	options, err := wire(cfg, log)
	if err != nil {
		return err
	}
	s := New(options)
	if err := s.Recover(); err != nil {
		log.Error("not all tasks could be read", "error", err)
	}
	return serve(ctx, s, cfg, log)
}

// serve answers on the socket until the end.
func serve(ctx context.Context, s *Supervisor, cfg Config, log *slog.Logger) error {
	_ = os.Remove(cfg.Socket()) // we hold the lock: it is a dead one's
	listener, err := net.Listen("unix", cfg.Socket())
	if err != nil {
		return err
	}
	if err := os.Chmod(cfg.Socket(), 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{Handler: s.Handler(cancel), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("supervisor is ready", "pid", os.Getpid(), "name", cfg.Name, "version", Version, "socket", cfg.Socket())
	select {
	case err = <-failed:
	case <-ctx.Done():
		err = nil
	}
	end, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if server.Shutdown(end) != nil {
		_ = server.Close()
	}
	log.Info("supervisor ends")
	return err
}

func newLog(level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // unknown: info
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
}
