package server

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/api/source"
)

const uploadLimit = 32 << 20

// withUploads is a platform that keeps uploads in dir, as the former life of it did.
func withUploads(t *testing.T, dir string) *platform {
	t.Helper()
	uploads, err := source.New(source.Config{Dir: dir, MaxUpload: uploadLimit})
	if err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, func(c *Config) { c.Uploads, c.UploadLimit = uploads, uploadLimit })
	p.newService("python")
	return p
}

// noise is a gzip of about n random bytes.
func noise(t *testing.T, n int) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.CopyN(z, rand.Reader, int64(n)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return b.Bytes(), hex.EncodeToString(sum[:])
}

// cutter passes connections on, and cuts the first ones after so many bytes in either direction.
type cutter struct {
	net.Listener
	mu   sync.Mutex
	to   string
	cuts []int64
	cut  int // so many were
}

func newCutter(t *testing.T, to string, cuts ...int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, to: strings.TrimPrefix(to, "http://"), cuts: cuts}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	return c
}

func (c *cutter) serve(in net.Conn) {
	defer in.Close()
	c.mu.Lock()
	out, err := net.Dial("tcp", c.to)
	most := int64(1 << 40)
	if len(c.cuts) > 0 {
		most, c.cuts = c.cuts[0], c.cuts[1:]
		c.cut++
	}
	c.mu.Unlock()
	if err != nil {
		return
	}
	defer out.Close()
	both := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.CopyN(to, from, most)
		both <- struct{}{}
	}
	go pass(out, in)
	go pass(in, out)
	<-both // either end, or the cut, ends it for both
}

func TestUploadInPieces(t *testing.T) {
	dir := t.TempDir()
	p := withUploads(t, dir)
	archive, sum := noise(t, 20<<20)
	var told []int64
	d, err := p.client.DeployUpload(t.Context(), "python", client.Upload{
		Archive: bytes.NewReader(archive), Size: int64(len(archive)), RootDir: "api", Progress: func(n int64) { told = append(told, n) },
	})
	if err != nil || d.Source != (leapcell.Source{Upload: sum, RootDir: "api"}) {
		t.Fatalf("%+v, %v", d.Source, err)
	}
	if told[0] != 0 || told[len(told)-1] != int64(len(archive)) || len(told) < 10 {
		t.Errorf("progress %v", told)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "uploads", sum+".tar.gz"))
	if err != nil || !bytes.Equal(kept, archive) {
		t.Errorf("%d bytes are kept of %d, %v", len(kept), len(archive), err)
	}
	// The same once more sends nothing.
	told = nil
	d, err = p.client.DeployUpload(t.Context(), "python", client.Upload{
		Archive: bytes.NewReader(archive), Size: int64(len(archive)), Progress: func(n int64) { told = append(told, n) },
	})
	if err != nil || d.Number != 2 || len(told) != 1 {
		t.Errorf("again: %+v, %v, progress %v", d, err, told)
	}
	_, err = p.client.DeployUpload(t.Context(), "python", client.Upload{Archive: bytes.NewReader(make([]byte, uploadLimit+1)), Size: uploadLimit + 1})
	wantCode(t, err, leapcell.CodeTooLarge, "32 MB")
}

// Connections are cut at random bytes, and the server is another one, on the same disk, from the
// middle on: the archive arrives whole.
func TestUploadOverBrokenConnections(t *testing.T) {
	dir := t.TempDir()
	first, second := withUploads(t, dir), withUploads(t, dir)
	second.admin = first.admin
	if err := second.store.PutToken(t.Context(), "first", "admin", first.admin); err != nil {
		t.Fatal(err)
	}
	archive, sum := noise(t, 12<<20)
	seed := mrand.Uint64()
	t.Logf("seed %d", seed)
	random := mrand.New(mrand.NewPCG(seed, 1))
	var cuts []int64
	for range 4 {
		cuts = append(cuts, random.Int64N(3<<20)) // three of them are less than the archive
	}
	cutting := newCutter(t, first.url, cuts...)
	broken := 0
	c := client.New(cutting.Addr().String(), first.admin)
	d, err := c.DeployUpload(t.Context(), "python", client.Upload{
		Archive: bytes.NewReader(archive), Size: int64(len(archive)),
		Broken: func(error) {
			if broken++; broken == 2 {
				cutting.mu.Lock()
				cutting.to = strings.TrimPrefix(second.url, "http://")
				cutting.mu.Unlock()
			}
		},
	})
	if err != nil || d.Source.Upload != sum {
		t.Fatalf("%+v, %v", d, err)
	}
	cutting.mu.Lock()
	defer cutting.mu.Unlock()
	if cutting.cut != 4 {
		t.Errorf("%d connections were cut", cutting.cut)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "uploads", sum+".tar.gz"))
	if err != nil || !bytes.Equal(kept, archive) {
		t.Errorf("%d bytes are kept of %d, %v", len(kept), len(archive), err)
	}
}

func TestUploadsByHand(t *testing.T) {
	p := withUploads(t, t.TempDir())
	archive, sum := noise(t, 1000)
	call := func(method, path, kind, offset, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+p.admin)
		req.Header.Set("Content-Type", kind)
		if offset != "" {
			req.Header.Set(leapcell.HeaderUploadOffset, offset)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	path := "/v1/uploads/" + sum
	begin := func(size int) *http.Response {
		return call("POST", "/v1/uploads", "application/json", "", fmt.Sprintf(`{"sha256":%q,"size":%d}`, sum, size))
	}
	deploy := func() int {
		return call("POST", "/v1/services/python/deployments", "application/json", "", `{"source":{"upload":"`+sum+`"}}`).StatusCode
	}
	half, all := len(archive)/2, len(archive)
	kind := leapcell.UploadPieceType
	for i, step := range []struct {
		resp   *http.Response
		status int
		offset string
	}{
		{call("HEAD", path, "", "", ""), 404, ""},
		{begin(all), 201, "0"},
		{call("PATCH", path, kind, "0", string(archive[:half])), 200, fmt.Sprint(half)},
		{call("PATCH", path, kind, "0", string(archive[:half])), 409, fmt.Sprint(half)}, // its answer was lost
		{call("PATCH", path, kind, fmt.Sprint(all), ""), 409, fmt.Sprint(half)},
		{call("PATCH", path, kind, "-1", "x"), 400, ""},
		{call("PATCH", path, "text/plain", fmt.Sprint(half), "x"), 400, ""},
		{begin(all), 201, fmt.Sprint(half)},
		{call("PATCH", path, kind, fmt.Sprint(half), string(archive[half:])+"more"), 413, fmt.Sprint(all)},
		{call("HEAD", path, "", "", ""), 200, fmt.Sprint(all)},
		{call("PATCH", path, kind, fmt.Sprint(all), ""), 200, fmt.Sprint(all)},
	} {
		if step.resp.StatusCode != step.status || step.resp.Header.Get(leapcell.HeaderUploadOffset) != step.offset {
			t.Errorf("step %d: status %d at %q, want %d at %q", i, step.resp.StatusCode, step.resp.Header.Get(leapcell.HeaderUploadOffset), step.status, step.offset)
		}
	}
	if status := deploy(); status != 202 {
		t.Errorf("deploy: %d", status)
	}
	// One that is not whole cannot be deployed, and one that is given up on is gone.
	_, sum = noise(t, 10)
	path = "/v1/uploads/" + sum
	begin(99)
	if status := deploy(); status != 409 {
		t.Errorf("deploy of a part: %d", status)
	}
	if a, b := call("DELETE", path, "", "", "").StatusCode, call("HEAD", path, "", "", "").StatusCode; a != 204 || b != 404 {
		t.Errorf("given up: %d, then %d", a, b)
	}
	if status := deploy(); status != 404 {
		t.Errorf("deploy of none: %d", status)
	}
	if status := call("HEAD", "/v1/uploads/..%2f..%2fx", "", "", "").StatusCode; status != 404 {
		t.Errorf("a path: %d", status)
	}
}
