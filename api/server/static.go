package server

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/leapcell/leapcell/api/cdn"
)

// StaticFiles are those that edges fetch.
type StaticFiles interface {
	// Content gives one of a service, else CodeNotFound.
	Content(ctx context.Context, service, sum string) (cdn.Content, error)
}

// staticPath is asked for by edges once for each file: a site may have thousands.
const staticPath = "/v1/static/:service/:sum"

func (s *Server) staticContent(c *gin.Context) error {
	content, err := s.cfg.Static.Content(c.Request.Context(), c.Param("service"), c.Param("sum"))
	if err != nil {
		return err
	}
	if content.URL != "" {
		c.Redirect(http.StatusTemporaryRedirect, content.URL)
		return nil
	}
	defer content.Body.Close()
	c.Header("Content-Type", "application/octet-stream")
	c.Header("Content-Length", strconv.FormatInt(content.Size, 10))
	c.Status(http.StatusOK)
	if n, err := io.Copy(c.Writer, content.Body); err != nil || n != content.Size {
		panic(http.ErrAbortHandler) // a content that is cut short must not look complete
	}
	return nil
}
