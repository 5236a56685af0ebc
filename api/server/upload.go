package server

import (
	"context"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/leapcell/leapcell"
)

// Uploads keeps source archives that come in pieces.
type Uploads interface {
	// Begin makes an upload, or finds it as far as it has come.
	Begin(ctx context.Context, sum string, size int64) (leapcell.Upload, error)
	Upload(ctx context.Context, sum string) (leapcell.Upload, error)
	// Append adds a piece; another offset than where the upload is gives CodeConflict. It says
	// also with an error how far the upload is.
	Append(ctx context.Context, sum string, offset int64, r io.Reader) (leapcell.Upload, error)
	Discard(ctx context.Context, sum string) error
}

// pieceIdle is how long a client may send nothing of a piece. It bounds for how long a
// connection that broke unnoticed keeps the next one waiting.
const pieceIdle = 20 * time.Second

func (s *Server) beginUpload(c *gin.Context) error {
	var in struct {
		SHA256 string `json:"sha256"`
		Size   int64  `json:"size"`
	}
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	up, err := s.cfg.Uploads.Begin(c.Request.Context(), in.SHA256, in.Size)
	if err != nil {
		return err
	}
	uploadHeaders(c, up)
	c.Header("Location", "/v1/uploads/"+up.SHA256)
	c.JSON(http.StatusCreated, up)
	return nil
}

func (s *Server) headUpload(c *gin.Context) error {
	up, err := s.cfg.Uploads.Upload(c.Request.Context(), c.Param("sum"))
	if err != nil {
		return err
	}
	uploadHeaders(c, up)
	c.Status(http.StatusOK)
	return nil
}

func (s *Server) appendUpload(c *gin.Context) error {
	if kind, _, err := mime.ParseMediaType(c.GetHeader("Content-Type")); err != nil || kind != leapcell.UploadPieceType {
		return leapcell.Errorf(leapcell.CodeInvalid, "the body has the type %q: %s is needed", c.GetHeader("Content-Type"), leapcell.UploadPieceType)
	}
	offset, err := leapcell.ParseUploadOffset(c.GetHeader(leapcell.HeaderUploadOffset))
	if err != nil {
		return err
	}
	rc := http.NewResponseController(c.Writer)
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	body := &idleReader{http.MaxBytesReader(c.Writer, c.Request.Body, s.cfg.UploadLimit), rc}
	up, err := s.cfg.Uploads.Append(c.Request.Context(), c.Param("sum"), offset, body)
	if up.SHA256 != "" {
		uploadHeaders(c, up)
	}
	if err != nil {
		swallow(rc, io.LimitReader(c.Request.Body, s.cfg.UploadLimit))
		return err
	}
	c.JSON(http.StatusOK, up)
	return nil
}

func (s *Server) discardUpload(c *gin.Context) error {
	if err := s.cfg.Uploads.Discard(c.Request.Context(), c.Param("sum")); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}

func uploadHeaders(c *gin.Context, up leapcell.Upload) {
	complete := "?0"
	if up.Complete() {
		complete = "?1"
	}
	c.Header(leapcell.HeaderUploadOffset, strconv.FormatInt(up.Offset, 10))
	c.Header(leapcell.HeaderUploadLength, strconv.FormatInt(up.Size, 10))
	c.Header(leapcell.HeaderUploadComplete, complete)
	c.Header("Cache-Control", "no-store")
}

// idleReader fails when nothing comes for too long.
type idleReader struct {
	io.Reader
	rc *http.ResponseController
}

func (r *idleReader) Read(b []byte) (int, error) {
	_ = r.rc.SetReadDeadline(time.Now().Add(pieceIdle)) // not every writer in tests can
	return r.Reader.Read(b)
}
