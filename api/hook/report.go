package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	reportTimeout = 20 * time.Second // of one call
	// reportTries bounds how often a host is told something that it does not take, with
	// pauses from a second to five minutes: about an hour together.
	reportTries    = 18
	maxReportPause = 5 * time.Minute
	// maxDescription is what GitHub takes; the others take more.
	maxDescription = 140
	statusContext  = "leapcell"
)

// runReports tells the hosts of repositories what comes of deployments: at first that they
// have begun, at last how they ended.
func (h *Hub) runReports(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	busy := map[string]bool{}
	done := make(chan string)
	begin := func(id string) {
		if busy[id] {
			return
		}
		busy[id] = true
		all.Go(func() {
			h.follow(ctx, id)
			select {
			case done <- id:
			case <-ctx.Done():
			}
		})
	}
	var again <-chan time.Time
	look := func() {
		ids, err := h.cfg.Store.Reports(ctx)
		if err != nil {
			again = time.After(h.cfg.Pause)
			return
		}
		for _, id := range ids {
			begin(id)
		}
	}
	look()
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-h.report:
			begin(id)
		case id := <-done:
			delete(busy, id)
		case <-again:
			again = nil
			look()
		}
	}
}

// follow tells the host of one deployment.
func (h *Hub) follow(ctx context.Context, id string) {
	dep, err := h.cfg.Store.Deployment(ctx, id)
	if err == nil && !dep.State.Done() {
		// The beginning is of no interest any more when the end is there.
		pending, cancel := context.WithCancel(ctx)
		told := make(chan struct{})
		go func(dep leapcell.Deployment) {
			defer close(told)
			h.tell(pending, dep)
		}(dep)
		dep, err = h.cfg.Deployer.Wait(ctx, id)
		cancel()
		<-told
	}
	if err == nil && ctx.Err() == nil {
		h.tell(ctx, dep)
	}
	if ctx.Err() != nil {
		return // it is on the list: the next process tells
	}
	if err := h.cfg.Store.ReportDone(ctx, id); err != nil && ctx.Err() == nil {
		h.cfg.Log.Warn("report not forgotten", "deployment", id, "err", err)
	}
}

// tell reports how dep stands now.
func (h *Hub) tell(ctx context.Context, dep leapcell.Deployment) {
	h.insist(ctx, func() error { return h.tellOnce(ctx, dep) }, "deployment", dep.ID, "state", dep.State)
}

// refuse reports that a commit is not deployed, and why. Nothing is stored of it: the next push to the
// same commit asks again.
func (h *Hub) refuse(ctx context.Context, c leapcell.Connection, commit string, why error) {
	o := outcome{"failure", short(leapcell.ErrorMessage(why)), ""}
	h.insist(ctx, func() error { return h.send(ctx, c.ID, commit, o) }, "connection", c.ID, "commit", commit)
}

// insist calls once again and again, until the host has taken it or will not. what names it in the log.
func (h *Hub) insist(ctx context.Context, once func() error, what ...any) {
	pause := h.cfg.Pause
	for try := 1; ; try++ {
		err := once()
		if err == nil || ctx.Err() != nil {
			return
		}
		if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || try == reportTries {
			h.cfg.Log.Warn("the host of the repository was not told", append(what, "tries", try, "err", err)...)
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, maxReportPause)
	}
}

func (h *Hub) tellOnce(ctx context.Context, dep leapcell.Deployment) error {
	svc, err := h.cfg.Store.Service(ctx, dep.ServiceID)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return h.send(ctx, dep.Source.Connection, dep.Source.Commit, outcomeOf(svc, dep))
}

// send tells the host of a connection's repository how a commit fares, if it wants to hear of it.
func (h *Hub) send(ctx context.Context, connection, commit string, o outcome) error {
	c, err := h.cfg.Store.Connection(ctx, connection)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil // disconnected
	}
	if err != nil || !c.HasToken || c.APIURL == "" {
		return err
	}
	token, err := h.cfg.Keys.open(ctx, c, secretToken)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	req, err := newReport(ctx, c.Connection, token, commit, o)
	if err != nil {
		return err
	}
	resp, err := h.web.Do(req)
	if err != nil {
		var known *leapcell.Error
		if errors.As(err, &known) {
			return known
		}
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the host does not answer")
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	return judge(resp.StatusCode)
}

// judge says of a host's answer whether it is worth trying again.
func judge(status int) error {
	switch {
	case status < 300:
		return nil
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		return leapcell.Errorf(leapcell.CodeUnavailable, "the host answered %d", status)
	}
	return leapcell.Errorf(leapcell.CodeUnprocessable, "the host answered %d: may the token set the state of commits?", status)
}

// outcome is how a deployment stands, in a host's terms.
type outcome struct {
	state       string // pending, success, failure
	description string
	target      string // an address; "" for none
}

func outcomeOf(svc leapcell.Service, dep leapcell.Deployment) outcome {
	live := !dep.LiveAt.IsZero()
	switch {
	case !dep.State.Done():
		return outcome{"pending", dep.ID + " is being deployed", ""}
	case dep.PreviewURL != "" && live:
		return outcome{"success", dep.ID + " can be seen", dep.PreviewURL}
	case live:
		return outcome{"success", dep.ID + " is live", svc.URL}
	case dep.State == leapcell.Superseded:
		return outcome{"failure", dep.ID + " was overtaken by a newer one", ""}
	}
	text := dep.ID + " " + string(dep.State)
	if dep.Error != nil {
		line, _, _ := strings.Cut(dep.Error.Message, "\n")
		text += ": " + plain(line)
	}
	return outcome{"failure", short(text), ""}
}

// short is a text as a description.
func short(text string) string {
	if len(text) > maxDescription {
		return strings.ToValidUTF8(text[:maxDescription-3], "") + "…"
	}
	return text
}

// newReport makes the call by which a host hears of a commit.
//
// https://docs.github.com/en/rest/commits/statuses
// https://docs.gitlab.com/api/commits/#set-commit-pipeline-status
// https://docs.gitea.com/api/ (repoCreateStatus)
func newReport(ctx context.Context, c leapcell.Connection, token, commit string, o outcome) (*http.Request, error) {
	u, err := url.Parse(c.GitURL)
	if err != nil {
		return nil, err
	}
	repository := strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git")
	body := map[string]string{"state": o.state, "description": o.description, "context": statusContext}
	if o.target != "" {
		body["target_url"] = o.target
	}
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}, "User-Agent": {"leapcell"}}
	var address string
	switch c.Provider {
	case leapcell.GitLab:
		if o.state == "failure" {
			body["state"] = "failed"
		}
		address = fmt.Sprintf("%s/projects/%s/statuses/%s", c.APIURL, url.PathEscape(repository), commit)
		header.Set("Private-Token", token)
	case leapcell.GitHub:
		address = fmt.Sprintf("%s/repos/%s/statuses/%s", c.APIURL, escapePath(repository), commit)
		header.Set("Authorization", "Bearer "+token)
		header.Set("Accept", "application/vnd.github+json")
		header.Set("X-Github-Api-Version", "2022-11-28")
	default:
		address = fmt.Sprintf("%s/repos/%s/statuses/%s", c.APIURL, escapePath(repository), commit)
		header.Set("Authorization", "token "+token)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(b))
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeInvalid, err, "the address of the host's API cannot be used")
	}
	req.Header = header
	return req, nil
}

func escapePath(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return strings.Join(parts, "/")
}
