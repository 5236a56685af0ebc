package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/leapcell/leapcell"
)

// Git LFS keeps a small text, the pointer, in the repository and the file at a server that
// is asked for many files at once.
// https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md and docs/api/batch.md
const (
	maxPointer   = 1024
	maxLFSAnswer = 4 << 20
	lfsBatch     = 100 // files asked for at once
	lfsType      = "application/vnd.git-lfs+json"
	lfsFirstLine = "version https://git-lfs.github.com/spec/v1\n"
	maxAttrs     = 1 << 20
)

// mentionsLFS reports whether a .gitattributes hands files over to LFS.
func mentionsLFS(e entry) (bool, error) {
	if e.open == nil || e.size > maxAttrs {
		return false, nil
	}
	b, err := readSmall(e)
	return bytes.Contains(b, []byte("filter=lfs")), err
}

// pointer stands for a large file.
type pointer struct {
	OID  string `json:"oid"` // sha256
	Size int64  `json:"size"`
}

// parsePointer reads a pointer; ok is false when b is none.
func parsePointer(b []byte) (p pointer, ok bool) {
	rest, ok := strings.CutPrefix(string(b), lfsFirstLine)
	if !ok || len(b) > maxPointer {
		return p, false
	}
	p.Size = -1
	for line := range strings.Lines(rest) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch key {
		case "oid":
			p.OID, ok = strings.CutPrefix(value, "sha256:")
			if sum, err := hex.DecodeString(p.OID); !ok || err != nil || len(sum) != sha256.Size {
				return p, false
			}
		case "size":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 {
				return p, false
			}
			p.Size = n
		}
	}
	return p, p.OID != "" && p.Size >= 0
}

// lfsServer is where a repository's large files are, and what to show there.
type lfsServer struct {
	Href   string            `json:"href"`
	Header map[string]string `json:"header"`
}

// resolveLFS puts the large files in the place of their pointers, among the files of names.
// They are read when the layer is written.
func (c *checkout) resolveLFS(ctx context.Context, at place, names []string) error {
	byOID := map[string][]string{}
	var wanted []pointer
	for _, name := range names {
		e, ok := c.t.entries[name]
		if !ok || !c.needs(name) {
			continue
		}
		b, err := readSmall(e)
		if err != nil {
			return err
		}
		p, ok := parsePointer(b)
		if !ok {
			continue
		}
		if p.Size > c.store.cfg.MaxFile {
			return leapcell.Errorf(leapcell.CodeTooLarge, "%q in the source is refused: it has %s in Git LFS, over the limit of %s for one file", name, megabytes(p.Size), megabytes(c.store.cfg.MaxFile))
		}
		if byOID[p.OID] == nil {
			wanted = append(wanted, p)
		}
		byOID[p.OID] = append(byOID[p.OID], name)
		e.size = p.Size // before anything is read: the limits hold
		if err := c.t.add(e); err != nil {
			return err
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	server, err := c.lfsServer(ctx, at.url)
	if err != nil {
		return err
	}
	c.progress(fmt.Sprintf("%d files from Git LFS", len(wanted)))
	for len(wanted) > 0 {
		n := min(len(wanted), lfsBatch)
		if err := c.askLFS(ctx, server, wanted[:n], byOID); err != nil {
			return err
		}
		wanted = wanted[n:]
	}
	return nil
}

// lfsServer is where the large files of the repository at u are.
func (c *checkout) lfsServer(ctx context.Context, u *url.URL) (lfsServer, error) {
	at := *u
	at.User = nil
	switch u.Scheme {
	case "ssh":
		if found, err := c.lfsLogin(ctx, u); err == nil {
			return found, nil
		}
		at.Scheme, at.Host = "https", u.Hostname()
	case "http", "https":
	default:
		return lfsServer{}, leapcell.Errorf(leapcell.CodeUnprocessable, "the repository has files in Git LFS, which a repository at %s:// cannot have", u.Scheme)
	}
	at.Path = strings.TrimSuffix(at.Path, ".git") + ".git/info/lfs"
	server := lfsServer{Href: at.String(), Header: map[string]string{}}
	if c.access.Token != "" && sameOrigin(u, c.origin) {
		req := http.Request{Header: http.Header{}}
		req.SetBasicAuth(c.user(), c.access.Token)
		server.Header["Authorization"] = req.Header.Get("Authorization")
	}
	return server, nil
}

// askLFS asks where to read the files of wanted, and makes their entries read there.
func (c *checkout) askLFS(ctx context.Context, server lfsServer, wanted []pointer, byOID map[string][]string) error {
	body, err := json.Marshal(map[string]any{
		"operation": "download", "transfers": []string{"basic"}, "objects": wanted, "hash_algo": "sha256",
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(server.Href, "/")+"/objects/batch", bytes.NewReader(body))
	if err != nil {
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, "the address of the repository's Git LFS server cannot be used")
	}
	req.Header.Set("Accept", lfsType)
	req.Header.Set("Content-Type", lfsType)
	for name, value := range server.Header {
		req.Header.Set(name, value)
	}
	b, err := c.callLFS(req)
	if err != nil {
		return err
	}
	found, err := parseBatch(b)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		item, ok := found[p.OID]
		name := byOID[p.OID][0]
		switch {
		case !ok:
			return leapcell.Errorf(leapcell.CodeUnprocessable, "Git LFS does not know %q", name)
		case item.Error != nil:
			return leapcell.Errorf(leapcell.CodeUnprocessable, "Git LFS does not give %q: %s", name, oneLine(item.Error.Message, 200))
		case item.Size != p.Size:
			return leapcell.Errorf(leapcell.CodeUnprocessable, "Git LFS has %q with another size than the repository says", name)
		}
		for _, name := range byOID[p.OID] {
			e := c.t.entries[name]
			e.open = func() (io.ReadCloser, error) { return c.openLFS(ctx, name, p, item.Actions.Download) }
			c.t.entries[name] = e
		}
	}
	return nil
}

func (c *checkout) callLFS(req *http.Request) ([]byte, error) {
	resp, err := c.store.web.Do(req)
	if err != nil {
		return nil, lfsError(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxLFSAnswer+1))
	switch {
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "the Git LFS server at %s does not let us in: connect the repository with a token", req.URL.Host)
	case resp.StatusCode != http.StatusOK:
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "the Git LFS server at %s answered %d", req.URL.Host, resp.StatusCode)
	case err != nil:
		return nil, lfsError(err)
	case len(b) > maxLFSAnswer:
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "the Git LFS server at %s answered at too great length", req.URL.Host)
	}
	return b, nil
}

func lfsError(err error) error {
	if known := asKnown(err); known != nil {
		return known
	}
	return leapcell.Wrap(leapcell.CodeUnprocessable, err, "the Git LFS server does not answer: "+oneLine(err.Error(), 200))
}

// lfsObject is what a server says of one file.
type lfsObject struct {
	pointer
	Actions struct {
		Download lfsServer `json:"download"`
	} `json:"actions"`
	Error *struct {
		Message string `json:"message"`
	} `json:"error"`
}

func parseBatch(b []byte) (map[string]lfsObject, error) {
	var answer struct {
		Transfer string      `json:"transfer"`
		Objects  []lfsObject `json:"objects"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, "the Git LFS server's answer cannot be read")
	}
	if answer.Transfer != "" && answer.Transfer != "basic" {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "the Git LFS server wants another transfer than it was asked for")
	}
	out := make(map[string]lfsObject, len(answer.Objects))
	for _, o := range answer.Objects {
		out[o.OID] = o
	}
	return out, nil
}

// openLFS reads one file, whose size and content must be what the pointer says.
func (c *checkout) openLFS(ctx context.Context, name string, p pointer, from lfsServer) (io.ReadCloser, error) {
	u, err := url.Parse(from.Href)
	if err != nil || u.Scheme != "https" && (u.Scheme != "http" || c.origin.Scheme == "https") {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "Git LFS has %q at an address that cannot be used", name)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.Href, nil)
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("Git LFS has %q at an address that cannot be used", name))
	}
	for key, value := range from.Header {
		req.Header.Set(key, value)
	}
	resp, err := c.store.web.Do(req)
	if err != nil {
		return nil, lfsError(err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "Git LFS answered %d when %q was read", resp.StatusCode, name)
	}
	return &largeFile{name: name, want: p, body: resp.Body, sum: sha256.New()}, nil
}

// largeFile reads a file from LFS and fails at its end when it is another one.
type largeFile struct {
	name string
	want pointer
	body io.ReadCloser
	sum  hash.Hash
	n    int64
}

func (f *largeFile) Read(p []byte) (int, error) {
	n, err := f.body.Read(p)
	f.sum.Write(p[:n])
	f.n += int64(n)
	if err == io.EOF && (f.n != f.want.Size || hex.EncodeToString(f.sum.Sum(nil)) != f.want.OID) || f.n > f.want.Size {
		return 0, leapcell.Errorf(leapcell.CodeUnprocessable, "what Git LFS has as %q is not the file that the repository means", f.name)
	}
	return n, err
}

func (f *largeFile) Close() error { return f.body.Close() }
