package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/leapcell/leapcell"
)

// blob streams a blob of a registry. Size and digest are verified when it ends: before its io.EOF
// nothing of it may be believed. A connection that is cut is replaced by one that goes on where the
// other ended, as long as patience lasts without a byte. Close it.
type blob struct {
	ctx      context.Context
	client   *http.Client
	url      string
	digest   v1.Hash
	size     int64
	patience time.Duration

	sum    hash.Hash
	at     int64
	body   io.ReadCloser      // nil between two connections
	cancel context.CancelFunc // of the connection
	last   time.Time          // when the last byte came
	wait   time.Duration      // before the next connection
}

const firstWait = 50 * time.Millisecond

// errSilent is a connection that we gave up: it is as good as cut.
var errSilent = fmt.Errorf("the registry sends nothing any more: %w", io.ErrUnexpectedEOF)

func (b *blob) Read(p []byte) (int, error) {
	if b.sum == nil {
		b.sum, b.last = sha256.New(), time.Now()
	}
	for {
		n, err := b.read(p)
		if n > 0 {
			b.sum.Write(p[:n])
			b.last, b.wait = time.Now(), 0
		}
		if b.at += int64(n); b.at > b.size {
			return n, leapcell.Errorf(leapcell.CodeUnprocessable, "layer %s has more than the %d bytes that the image names", b.digest, b.size)
		}
		switch {
		case b.at == b.size && (err == nil && n == 0 || err == io.EOF):
			return n, b.verify()
		case err == nil || n > 0:
			if err != nil {
				b.drop()
			}
			return n, nil
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		if err := b.lost(err); err != nil {
			return 0, err
		}
	}
}

// read reads from the connection, making one first if there is none.
func (b *blob) read(p []byte) (int, error) {
	if b.body == nil {
		if b.at == b.size && b.at > 0 {
			return 0, io.EOF
		}
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	stalled := time.AfterFunc(b.patience/3, b.cancel)
	n, err := b.body.Read(p)
	if !stalled.Stop() && err != nil && err != io.EOF {
		err = errSilent
	}
	return n, err
}

// lost gets over the loss of a connection, or gives the error that ends the stream.
func (b *blob) lost(err error) error {
	away := b.body != nil || isAway(err)
	b.drop()
	if b.ctx.Err() != nil {
		return b.ctx.Err() // without its cause, which may be the fault of another layer
	}
	if !away || time.Since(b.last) > b.patience {
		return err
	}
	b.wait = min(max(2*b.wait, firstWait), 2*time.Second)
	return rest(b.ctx, b.wait)
}

// open asks for the rest of the blob.
func (b *blob) open() (err error) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return err
	}
	if b.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.at, b.size-1)) // not every registry knows ranges without an end
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return err
	}
	var from int64
	switch _, scan := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); {
	case resp.StatusCode == http.StatusOK:
		// It knows no ranges: what came before is read again, and not looked at.
		if _, err = io.CopyN(io.Discard, resp.Body, b.at); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	case resp.StatusCode == http.StatusPartialContent && (scan != nil || from != b.at):
		err = leapcell.Errorf(leapcell.CodeUnavailable, "the registry was asked for layer %s from byte %d on and sends %q", b.digest, b.at, resp.Header.Get("Content-Range"))
	default:
		err = transport.CheckError(resp, http.StatusPartialContent)
	}
	if err != nil {
		return errors.Join(err, resp.Body.Close())
	}
	b.body, b.cancel = resp.Body, cancel
	return nil
}

func (b *blob) verify() error {
	if got := hex.EncodeToString(b.sum.Sum(nil)); got != b.digest.Hex {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "layer %s was transferred damaged: what came has the digest sha256:%s", b.digest, got)
	}
	return io.EOF
}

func (b *blob) drop() {
	if b.body != nil {
		b.cancel()
		b.body.Close()
		b.body = nil
	}
}

// Close ends the connection. Whether all came is said by Read.
func (b *blob) Close() error {
	b.drop()
	return nil
}
