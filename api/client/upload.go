package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
)

// Upload is a source archive to deploy.
type Upload struct {
	Archive  io.ReaderAt      // a tar.gz of the tree
	Size     int64            // in bytes
	RootDir  string           // within the tree; "" is its top
	Progress func(sent int64) // called as bytes go out, from where the upload was; may be nil
	Broken   func(err error)  // called when the connection broke and it is tried again; may be nil
}

const (
	pieceSize    = 8 << 20
	uploadOutage = 2 * time.Minute // how long the API may be away while something is uploaded
	pieceStall   = time.Minute     // how long no byte may go out
)

// DeployUpload sends a source archive in pieces and starts a deployment of it. A connection that
// breaks and a restart of the API cost no more than the piece; called again with the same archive,
// also by another process, it goes on where the last call came to.
func (c *Client) DeployUpload(ctx context.Context, nameOrID string, up Upload) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(up.Archive, 0, up.Size)); err != nil {
		return d, fmt.Errorf("reading the archive: %w", err)
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if err := c.send(ctx, sum, up); err != nil {
		return d, err
	}
	in := map[string]any{"source": map[string]string{"upload": sum, "rootDir": up.RootDir}}
	err := c.once(ctx, "/v1/services/"+escape(nameOrID)+"/deployments", in, &d)
	return d, err
}

// send brings the upload to its end.
func (c *Client) send(ctx context.Context, sum string, up Upload) error {
	var at *leapcell.Upload // as far as it is known; nil: it has to be asked
	var heard time.Time     // when something came through
	for {
		var now leapcell.Upload
		var err error
		if at == nil {
			err = c.call(ctx, http.MethodPost, "/v1/uploads", map[string]any{"sha256": sum, "size": up.Size}, &now)
		} else {
			now, err = c.piece(ctx, *at, up)
		}
		if err == nil {
			if up.Progress != nil {
				up.Progress(now.Offset)
			}
			if now.Complete() {
				return nil
			}
			if now.SHA256 != sum || now.Size != up.Size || now.Offset < 0 || now.Offset > now.Size {
				return leapcell.Errorf(leapcell.CodeUnavailable, "the leapcell API at %s answered for another upload", c.base)
			}
			at, heard = &now, time.Now()
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if heard.IsZero() || !passes(err) || time.Since(heard) > uploadOutage {
			return err
		}
		if up.Broken != nil && at != nil {
			up.Broken(err)
		}
		at = nil
		if err := rest(ctx); err != nil {
			return err
		}
	}
}

// passes reports whether another try may go better: the connection broke, something between does
// not reach the API, or the upload is not where we thought it was.
func passes(err error) bool {
	switch leapcell.ErrorCode(err) {
	case leapcell.CodeConflict, leapcell.CodeNotFound, leapcell.CodeRequestTimeout, leapcell.CodePortNotListening:
		return true
	}
	return answerLost(err)
}

// piece sends the next one.
func (c *Client) piece(ctx context.Context, at leapcell.Upload, up Upload) (leapcell.Upload, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n := min(pieceSize, at.Size-at.Offset)
	body := &pieceReader{r: io.NewSectionReader(up.Archive, at.Offset, n), sent: at.Offset, report: up.Progress}
	body.stall = time.AfterFunc(pieceStall, func() { cancel(errStalled) })
	defer body.end()
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, c.base+"/v1/uploads/"+at.SHA256, body)
	if err != nil {
		return at, leapcell.Errorf(leapcell.CodeInvalid, "the API address %q cannot be used: %w", c.base, err)
	}
	req.ContentLength = n
	req.Header.Set("Content-Type", leapcell.UploadPieceType)
	req.Header.Set(leapcell.HeaderUploadOffset, strconv.FormatInt(at.Offset, 10))
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			return at, leapcell.Wrap(leapcell.CodeRequestTimeout, err, errStalled.Error())
		}
		return at, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 300 {
		return at, readProblem(resp)
	}
	var now leapcell.Upload
	if err := c.readAnswer(resp, &now); err != nil {
		return at, leapcell.Wrap(leapcell.CodeRequestTimeout, err, "the answer of the leapcell API at "+c.base+" was cut short")
	}
	return now, nil
}

var errStalled = errors.New("no byte went out for " + pieceStall.String())

// pieceReader tells how far a piece has gone, and that it still goes.
type pieceReader struct {
	r      io.Reader
	report func(int64)
	stall  *time.Timer

	mu   sync.Mutex // the transport may still read when the answer is there; guards report, too
	sent int64
}

// end makes it silent: the transport may read on for a moment.
func (p *pieceReader) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stall.Stop()
	p.report = nil
}

func (p *pieceReader) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stall.Reset(pieceStall)
	n, err := p.r.Read(b)
	if p.sent += int64(n); n > 0 && p.report != nil {
		p.report(p.sent)
	}
	return n, err
}
