package edge

import (
	"os"
	"path/filepath"

	"github.com/leapcell/leapcell/traefik/static"
)

// fronts is what serves static files.
type fronts struct {
	server *static.Server
	dir    string // to be removed at the end, "" for none
}

func newFronts(cfg Config, m *meters) (*fronts, error) {
	f := &fronts{}
	dir := filepath.Join(cfg.DataDir, "static")
	if cfg.DataDir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "leapcell-edge-static-"); err != nil {
			return nil, err
		}
		f.dir = dir
	}
	var err error
	f.server, err = static.New(static.Config{Dir: dir, MaxBytes: cfg.StaticBytes, APIs: cfg.APIAddrs, Token: cfg.APIToken, Count: m.Count, Log: cfg.Log})
	if err != nil {
		f.close()
	}
	return f, err
}

// metersDir is where static requests are counted, "" for memory only.
func (c Config) metersDir() string {
	if c.DataDir == "" {
		return ""
	}
	return filepath.Join(c.DataDir, "meters")
}

func (f *fronts) close() {
	if f.dir != "" {
		_ = os.RemoveAll(f.dir) // the system removes it one day otherwise
	}
}
