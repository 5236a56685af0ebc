package server

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// streamWrite bounds how long a client may not read.
const streamWrite = 30 * time.Second

// stream sends r as it comes and closes it. It ends with r or with ctx; an end that is not
// that of r cuts the connection, so that nobody takes half a log for all of it.
func (s *Server) stream(ctx context.Context, c *gin.Context, r io.ReadCloser) error {
	// Closing is what makes a blocked Read return.
	unhook := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer func() {
		if unhook() {
			_ = r.Close()
		}
	}()
	c.Header("Content-Type", "text/plain; charset=utf-8")
	c.Header("X-Content-Type-Options", "nosniff")
	c.Header("Cache-Control", "no-store")
	c.Status(http.StatusOK)
	c.Writer.WriteHeaderNow()
	c.Writer.Flush() // the client knows at once that it is connected
	rc := http.NewResponseController(c.Writer)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			_ = rc.SetWriteDeadline(time.Now().Add(streamWrite)) // not every writer in tests can
			if _, err := c.Writer.Write(buf[:n]); err != nil {
				return nil // the client is gone
			}
			c.Writer.Flush()
		}
		if err == io.EOF {
			_ = rc.SetWriteDeadline(time.Time{})
			return nil
		}
		if err != nil {
			if isStopped(ctx, err) {
				panic(http.ErrAbortHandler)
			}
			return err
		}
	}
}

func (s *Server) serviceLogs(c *gin.Context) error {
	follow, err := boolQuery(c, "follow")
	if err != nil {
		return err
	}
	tail, err := intQuery(c, "tail", 100, 0, 10_000)
	if err != nil {
		return err
	}
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	ctx, stop := s.untilStop(c)
	defer stop()
	r, err := s.cfg.Logs.ServiceLogs(ctx, svc, follow, tail)
	if err != nil {
		return err
	}
	return s.stream(ctx, c, r)
}
