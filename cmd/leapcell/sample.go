package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/internal/platform"
)

// sample is the service that up deploys and visits, to show that everything works.
type sample struct {
	cfg    platform.Config
	dir    string
	answer *visited
}

// visited is what a visit to a service gave.
type visited struct {
	url, answer string
	took        time.Duration
}

func (s *sample) name() string { return serviceNameOf(s.dir) }

func (s *sample) client() (*client.Client, error) {
	token, err := os.ReadFile(s.cfg.AdminTokenFile())
	if err != nil {
		return nil, fmt.Errorf("the API token: %w", err)
	}
	return client.New(s.cfg.APIAddress(), strings.TrimSpace(string(token))), nil
}

// deploy does nothing when the sample is live already.
func (s *sample) deploy(ctx context.Context, note func(string, ...any)) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	service, err := c.Service(ctx, s.name())
	if err == nil && service.Live != "" {
		note("%s is live already", service.Live)
		return nil
	}
	if err != nil && leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return err
	}
	archive, err := packTemp(s.dir)
	if err != nil {
		return err
	}
	defer archive.remove()
	if service, err = ensureService(ctx, c, s.name(), leapcell.Settings{}); err != nil {
		return err
	}
	d, err := c.DeployUpload(ctx, service.ID, client.Upload{Archive: archive.file, Size: archive.size})
	if err != nil {
		return err
	}
	lines := &noteLines{note: note}
	_ = copyLog(ctx, c, d.ID, lines, false) // the outcome counts
	lines.flush()
	if d, err = c.Wait(ctx, d.ID); err != nil {
		return err
	}
	if d.State != leapcell.Live {
		return deploymentError(d)
	}
	return nil
}

func (s *sample) visit(ctx context.Context, _ func(string, ...any)) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	service, err := c.Service(ctx, s.name())
	if err != nil {
		return err
	}
	v, err := visit(ctx, service.URL, s.cfg.EdgeAddress())
	if err != nil {
		return err
	}
	s.answer = &v
	return nil
}

// visit asks a service as a browser does, but finds the edge without asking DNS: not every
// machine resolves *.localhost.
func visit(ctx context.Context, url, edge string) (visited, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	visitor := &http.Client{
		Timeout: 90 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, edge)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return visited{}, err
	}
	began := time.Now()
	resp, err := visitor.Do(req)
	if err != nil {
		return visited{}, fmt.Errorf("visiting %s: %w", url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return visited{}, fmt.Errorf("visiting %s: %w", url, err)
	}
	v := visited{url: url, answer: strings.TrimSpace(string(body)), took: time.Since(began)}
	if resp.StatusCode != http.StatusOK {
		return v, fmt.Errorf("visiting %s: it answers %d: %s", url, resp.StatusCode, v.answer)
	}
	return v, nil
}

// upSummary ends `leapcell up`: what to visit next, and where everything is.
func (a *app) upSummary(cfg platform.Config, s *sample) error {
	summary := map[string]string{
		"api": cfg.APIAddress(), "tokenFile": cfg.AdminTokenFile(), "nomadUI": cfg.NomadAddress() + "/ui/",
		"nomadTokenFile": cfg.NomadTokenFile(), "logs": cfg.LogFile("*"), "stateDir": cfg.StateDir,
	}
	rows := [][]string{
		{"API", summary["api"]}, {"  its token", summary["tokenFile"]},
		{"Nomad UI", summary["nomadUI"]}, {"  its token", summary["nomadTokenFile"]},
		{"logs", summary["logs"]}, {"state", summary["stateDir"]},
	}
	if v := s.answer; v != nil {
		summary["url"], summary["answer"] = v.url, v.answer
		rows = append([][]string{{"visit", v.url}, {"it answered", fmt.Sprintf("%s   (%d ms)", v.answer, v.took.Milliseconds())}}, rows...)
	}
	if a.output == "json" {
		return a.json(summary)
	}
	fmt.Fprintln(a.out)
	if err := a.table(rows...); err != nil {
		return err
	}
	command := "leapcell"
	if exe, err := os.Executable(); err == nil {
		if wd, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(wd, exe); err == nil && !strings.HasPrefix(rel, "..") {
				command = rel
			}
		}
	}
	fmt.Fprintf(a.out, "\nNext: %[1]s deploy FOLDER   %[1]s services   %[1]s status   %[1]s down\n", command)
	return nil
}

// noteLines turns a stream of text into notes, a line each.
type noteLines struct {
	note    func(string, ...any)
	partial []byte
}

func (n *noteLines) Write(b []byte) (int, error) {
	n.partial = append(n.partial, b...)
	for {
		i := strings.IndexByte(string(n.partial), '\n')
		if i < 0 {
			return len(b), nil
		}
		n.note("%s", n.partial[:i])
		n.partial = n.partial[i+1:]
	}
}

func (n *noteLines) flush() {
	if len(n.partial) > 0 {
		n.note("%s", n.partial)
	}
}
