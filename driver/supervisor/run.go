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

// Run is a supervisor's process from beginning to end: until ctx is done, somebody asks for
// its shutdown, or another one has taken its tasks over and nothing is left to do. When ctx
// ends it, running instances stay: the next one takes them over.
func Run(ctx context.Context, cfg Config) error {
	log := newLog(cfg.LogLevel)
	// Nothing of what started us may decide about instances or reach Vault and Nomad by
	// other settings than ours.
	os.Clearenv()
	_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if err := leaveCgroup(cfg.Group()); err != nil {
		log.Warn("no cgroup of its own: whoever stops the agent's cgroup stops the supervisor too", "error", err)
	}
	if err := letOthersFinish(); err != nil {
		log.Warn("instances and their gates interrupt each other more often than they need to", "error", err)
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
	c, err := stake(cfg, log)
	if err != nil {
		return err
	}
	defer c.release()
	options, err := wire(cfg, log, c.commit)
	if err != nil {
		return err // a former supervisor sees our end and goes on, unless it had committed
	}
	s := New(options)
	if err := s.recoverAll(c); err != nil {
		log.Error("not all tasks could be read", "error", err)
	}
	present, stop := s.present(ctx)
	defer stop()
	go s.meters.run(present)
	return serve(ctx, s, c, cfg, log)
}

// serve answers on the sockets until the end.
func serve(ctx context.Context, s *Supervisor, c *claim, cfg Config, log *slog.Logger) error {
	peers, err := listenPeers(cfg.HandoverSocket())
	if err != nil {
		return err
	}
	defer peers.Close()
	go s.servePeers(peers, c.lock)
	go func() {
		<-s.pace.moved
		_ = peers.Close() // whoever looks for the node's supervisor must not find us
	}()
	listener, err := listenSocket(cfg.Socket())
	if err != nil {
		return err
	}
	defer func() {
		if !s.pace.isMoved() { // else they are another's
			_, _ = os.Remove(cfg.Socket()), os.Remove(cfg.HandoverSocket())
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{Handler: s.Handler(cancel), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("supervisor is ready", "pid", os.Getpid(), "name", cfg.Name, "version", Version, "socket", cfg.Socket())
	select {
	case err = <-failed:
	case <-s.left:
	case <-s.bereft:
		_ = server.Close() // should it have died before it had the socket, the plugin must see that nobody is there
		select {
		case <-s.left:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	end, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if server.Shutdown(end) != nil {
		_ = server.Close()
	}
	log.Info("supervisor ends")
	return err
}

// listenSocket takes the socket's name in one step: whoever connects meanwhile finds a former
// supervisor, which tells to ask again.
func listenSocket(socket string) (net.Listener, error) {
	name := socket + ".new"
	_ = os.Remove(name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be another's by then
	if err := errors.Join(os.Chmod(name, 0o600), os.Rename(name, socket)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func newLog(level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // unknown: info
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
}
