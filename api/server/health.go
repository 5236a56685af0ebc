package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
)

const healthTimeout = 3 * time.Second

// getHealth asks every part at the same time. Calls that come while it asks share the
// answer: nobody can load Nomad or Vault by asking often.
func (s *Server) getHealth(c *gin.Context) error {
	v, _, _ := s.health.Do("", func() (any, error) {
		// Without the caller's context: others wait for the same answer.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), healthTimeout)
		defer cancel()
		return s.checkAll(ctx), nil
	})
	parts, _ := v.(map[string]string)
	status := http.StatusOK
	if parts["status"] != "ok" {
		status = http.StatusServiceUnavailable
	}
	c.JSON(status, parts)
	return nil
}

func (s *Server) checkAll(ctx context.Context) map[string]string {
	parts := map[string]string{"status": "ok"}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, check := range s.cfg.Checks {
		wg.Go(func() {
			err := check(ctx)
			mu.Lock()
			defer mu.Unlock()
			if parts[name] = "ok"; err != nil {
				parts[name], parts["status"] = leapcell.ErrorMessage(err), "degraded"
				s.cfg.Log.Warn("health: a part does not work", "part", name, "err", err)
			}
		})
	}
	wg.Wait()
	return parts
}

func (s *Server) getVersion(c *gin.Context) error {
	c.JSON(http.StatusOK, map[string]string{"version": s.cfg.Version})
	return nil
}
