package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/api/store"
)

// lockDataDir makes the data folder and keeps a second leapcelld out of it: it is an error
// there, or with standby it waits until the folder is free. The lock goes with the process,
// however that ends.
func lockDataDir(ctx context.Context, dir string, standby bool, log *slog.Logger) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && standby {
		log.Info("standing by: another leapcelld works in the data folder", "dir", dir)
		return waitForLock(ctx, f)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("--data-dir %s: another leapcelld works in it (--standby waits for it to end)", dir)
	}
	return func() { _ = f.Close() }, nil
}

// waitForLock waits in the kernel: the lock is ours in the moment in which its holder dies.
func waitForLock(ctx context.Context, f *os.File) (unlock func(), err error) {
	got := make(chan error, 1)
	go func() {
		var err error = unix.EINTR
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		got <- err
	}()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("--data-dir: waiting for the lock: %w", err)
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; _ = f.Close() }() // the system call cannot be called back
		return nil, ctx.Err()
	}
}

// readToken reads the token in a file; without a file there is none.
func readToken(flag, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// readTokenIfThere reads the token in a file that may be missing.
func readTokenIfThere(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read a token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// makeTokens makes sure that the tokens in the files of the admin, of the edges, of the nodes and of
// who may read variables back are known, and makes files that are missing but the last: that
// token is one of Vault's.
func makeTokens(ctx context.Context, cfg Config, db *store.Store) error {
	for _, t := range []struct{ name, role, file string }{
		{"admin", store.RoleAdmin, cfg.path("admin.token")},
		{"edge", store.RoleEdge, cfg.EdgeTokenFile},
		{"node", store.RoleNode, cfg.NodeTokenFile},
		{"secrets", store.RoleSecrets, cfg.path("secrets.token")},
	} {
		plain, err := readTokenIfThere(t.file)
		if err != nil {
			return err
		}
		if plain != "" {
			if err := db.PutToken(ctx, t.name, t.role, plain); err != nil {
				return err
			}
			continue
		}
		if t.role == store.RoleSecrets {
			continue
		}
		if plain, err = db.CreateToken(ctx, t.name, t.role); err != nil {
			return err
		}
		if err := writeSecret(t.file, plain); err != nil {
			return err
		}
	}
	return nil
}

// writeSecret writes a file for its owner's eyes in one step.
func writeSecret(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// version is that of the module, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (info.Main.Version == "" || info.Main.Version == "(devel)") {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return info.Main.Version
}
