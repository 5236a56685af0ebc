package server

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
)

func (s *Server) listRuntimes(c *gin.Context) error {
	all, err := s.cfg.Runtimes.Statuses(c.Request.Context())
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, all)
	return nil
}

// updateRuntime streams how it goes. That the stream ends does not say how it ended: the table does.
func (s *Server) updateRuntime(c *gin.Context) error {
	r, err := s.cfg.Runtimes.Runtime(c.Param("runtime"))
	if err != nil {
		return err
	}
	ctx, stop := s.untilStop(c)
	defer stop()
	out, in := io.Pipe()
	go func() {
		say := func(line string) { _, _ = fmt.Fprintln(in, line) } // fails when nobody reads any more
		if err := s.cfg.Runtimes.Update(ctx, r, say); err != nil && ctx.Err() == nil {
			say("failed: " + leapcell.ErrorMessage(err))
		}
		in.CloseWithError(context.Cause(ctx))
	}()
	return s.stream(ctx, c, out)
}

func (s *Server) clearCache(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	if err := s.cfg.Deployer.ClearCache(c.Request.Context(), svc); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}
