package server

import (
	"context"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/source"
)

// DeploymentStore reads deployments; the deployer writes them.
type DeploymentStore interface {
	Deployment(ctx context.Context, id string) (leapcell.Deployment, error)
	// ListDeployments gives those of a service that q means, newest first.
	ListDeployments(ctx context.Context, serviceID string, q leapcell.DeploymentQuery) ([]leapcell.Deployment, error)
}

const (
	defaultWait = 60 * time.Second
	maxWait     = 5 * time.Minute
	// uploadTimeout bounds how long a client may take to send a source archive.
	uploadTimeout = 30 * time.Minute
)

func (s *Server) createDeployment(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	kind, _, err := mime.ParseMediaType(c.GetHeader("Content-Type"))
	if err != nil && c.GetHeader("Content-Type") != "" {
		return leapcell.Errorf(leapcell.CodeInvalid, "the content type %q cannot be read", c.GetHeader("Content-Type"))
	}
	switch kind {
	case "application/gzip", "application/x-gzip":
		return s.deployUpload(c, svc)
	case "application/json", "":
		return s.deployGit(c, svc)
	}
	return leapcell.Errorf(leapcell.CodeInvalid, "the body has the type %q: application/json or application/gzip is needed", kind)
}

func (s *Server) deployGit(c *gin.Context, svc leapcell.Service) error {
	var in struct {
		Source struct {
			GitURL  string `json:"gitURL"`
			Branch  string `json:"branch"`
			Tag     string `json:"tag"`
			Commit  string `json:"commit"`
			RootDir string `json:"rootDir"`
			Image   string `json:"image"`
			Upload  string `json:"upload"`
		} `json:"source"`
	}
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	if in.Source.Image != "" {
		return s.deployImage(c, svc, in.Source.Image)
	}
	root, err := cleanRootDir(in.Source.RootDir)
	if err != nil {
		return err
	}
	if in.Source.Upload != "" {
		return s.deployWhole(c, svc, leapcell.Source{Upload: in.Source.Upload, RootDir: root})
	}
	src, err := s.connected(c.Request.Context(), svc, leapcell.Source{
		GitURL: source.CleanURL(in.Source.GitURL), Branch: in.Source.Branch, Tag: in.Source.Tag, Commit: in.Source.Commit, RootDir: root,
	})
	if err != nil {
		return err
	}
	return s.submit(c, svc, src)
}

// deployImage takes a ready image: there is no source, and nothing is built.
func (s *Server) deployImage(c *gin.Context, svc leapcell.Service, ref string) error {
	return s.submit(c, svc, leapcell.Source{Image: ref})
}

// deployWhole takes an upload that came in pieces.
func (s *Server) deployWhole(c *gin.Context, svc leapcell.Service, src leapcell.Source) error {
	switch up, err := s.cfg.Uploads.Upload(c.Request.Context(), src.Upload); {
	case err != nil:
		return err
	case !up.Complete():
		return leapcell.Errorf(leapcell.CodeConflict, "the upload has %d of its %d bytes: send the rest first", up.Offset, up.Size)
	}
	return s.submit(c, svc, src)
}

// connected completes src from the connection of the service: the repository is read with its
// credentials, and is the one that is meant when none is named.
func (s *Server) connected(ctx context.Context, svc leapcell.Service, src leapcell.Source) (leapcell.Source, error) {
	known, err := s.cfg.Hub.Connection(ctx, svc)
	switch {
	case leapcell.ErrorCode(err) == leapcell.CodeNotFound && src.GitURL == "":
		return src, leapcell.Errorf(leapcell.CodeInvalid, "source.gitURL is missing: give a git repository, connect the service with one, or upload a tree as application/gzip")
	case leapcell.ErrorCode(err) == leapcell.CodeNotFound:
		return src, nil
	case err != nil:
		return src, err
	}
	if src.GitURL == "" {
		src.GitURL = known.GitURL
		if src.Branch == "" && src.Tag == "" && src.Commit == "" {
			src.Branch = known.Branch
		}
		if src.RootDir == "" {
			src.RootDir = known.RootDir
		}
	}
	if src.GitURL == known.GitURL {
		src.Connection = known.ID
	}
	return src, nil
}

func (s *Server) deployUpload(c *gin.Context, svc leapcell.Service) error {
	if c.Request.ContentLength > s.cfg.UploadLimit {
		return errTooLarge(s.cfg.UploadLimit) // before a byte of it is read
	}
	root, err := cleanRootDir(c.Query("rootDir"))
	if err != nil {
		return err
	}
	origin, err := manual(c)
	if err != nil {
		return err
	}
	rc := http.NewResponseController(c.Writer)
	_ = rc.SetReadDeadline(time.Now().Add(uploadTimeout)) // not every writer in tests can
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	body := http.MaxBytesReader(c.Writer, c.Request.Body, s.cfg.UploadLimit)
	d, err := s.cfg.Deployer.Submit(c.Request.Context(), svc, leapcell.Source{RootDir: root}, origin, body)
	swallow(rc, io.LimitReader(c.Request.Body, s.cfg.UploadLimit)) // what was not needed to know the answer
	if err != nil {
		return err
	}
	c.JSON(http.StatusAccepted, d)
	return nil
}

// submit starts a deployment of a source that is not in the body.
func (s *Server) submit(c *gin.Context, svc leapcell.Service, src leapcell.Source) error {
	origin, err := manual(c)
	if err != nil {
		return err
	}
	d, err := s.cfg.Deployer.Submit(c.Request.Context(), svc, src, origin, nil)
	if err != nil {
		return err
	}
	c.JSON(http.StatusAccepted, d)
	return nil
}

// manual is the origin of a deployment that the caller asks for.
func manual(c *gin.Context) (leapcell.Origin, error) {
	key, err := leapcell.ParseRequestKey(c.GetHeader(leapcell.HeaderIdempotencyKey))
	return leapcell.Origin{Trigger: leapcell.Manual, StartedBy: c.GetString(keyToken), Request: key}, err
}

// swallow reads on for a moment what a client still sends. A connection that is closed while
// it does takes the answer with it, and the client sees a broken pipe instead of the reason.
func swallow(rc *http.ResponseController, body io.Reader) {
	_ = rc.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.Copy(io.Discard, body)
}

// cleanRootDir checks a folder within a tree; "" is its top.
func cleanRootDir(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	clean := path.Clean(dir)
	if path.IsAbs(dir) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsAny(dir, "\x00\\") {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "rootDir is %q: it must be a folder within the source", dir)
	}
	if clean == "." {
		return "", nil
	}
	return clean, nil
}

func (s *Server) listDeployments(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	q := leapcell.DeploymentQuery{Branch: c.Query("branch")}
	if q.Limit, err = intQuery(c, "limit", 50, 1, 1000); err != nil {
		return err
	}
	if q.Before, err = intQuery(c, "before", 0, 0, math.MaxInt32); err != nil {
		return err
	}
	if q.States, err = states(c.Query("state")); err != nil {
		return err
	}
	all, err := s.cfg.Store.ListDeployments(c.Request.Context(), svc.ID, q)
	if err != nil {
		return err
	}
	for i := range all {
		all[i].Place = s.cfg.Deployer.Place(c.Request.Context(), all[i])
	}
	c.JSON(http.StatusOK, all)
	return nil
}

// states reads a list such as "live,failed".
func states(text string) (out []leapcell.State, err error) {
	if text == "" {
		return nil, nil
	}
	for name := range strings.SplitSeq(text, ",") {
		state := leapcell.State(name)
		if !slices.Contains(leapcell.States(), state) {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "there is no state %q: there are %s", name, leapcell.States())
		}
		out = append(out, state)
	}
	return out, nil
}

func (s *Server) getDeployment(c *gin.Context) error {
	d, err := s.cfg.Store.Deployment(c.Request.Context(), c.Param("deployment"))
	if err != nil {
		return err
	}
	d.Place = s.cfg.Deployer.Place(c.Request.Context(), d)
	c.JSON(http.StatusOK, d)
	return nil
}

func (s *Server) waitDeployment(c *gin.Context) error {
	timeout := defaultWait
	if text := c.Query("timeout"); text != "" {
		var err error
		if timeout, err = time.ParseDuration(text); err != nil || timeout < 0 || timeout > maxWait {
			return leapcell.Errorf(leapcell.CodeInvalid, "timeout is %q: it must be a duration from 0s to %s", text, maxWait)
		}
	}
	// First, so that an ID that does not exist is an error at once.
	d, err := s.cfg.Store.Deployment(c.Request.Context(), c.Param("deployment"))
	if err != nil {
		return err
	}
	if !d.State.Done() {
		ctx, stop := s.untilStop(c)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		d, err = s.cfg.Deployer.Wait(ctx, d.ID)
		if err != nil && ctx.Err() != nil {
			// Timeout, or the server stops: it is as it is.
			d, err = s.cfg.Store.Deployment(c.Request.Context(), c.Param("deployment"))
		}
		if err != nil {
			return err
		}
	}
	c.JSON(http.StatusOK, d)
	return nil
}

func (s *Server) cancelDeployment(c *gin.Context) error {
	ctx, id := c.Request.Context(), c.Param("deployment")
	if err := s.cfg.Deployer.Cancel(ctx, id); err != nil {
		return err
	}
	d, err := s.cfg.Store.Deployment(ctx, id)
	if err != nil {
		return err
	}
	c.JSON(http.StatusAccepted, d)
	return nil
}

// former reads which deployment of which service is to come back, "" leaves the choice to us, and by
// whose wish.
func (s *Server) former(c *gin.Context) (svc leapcell.Service, deployment string, by leapcell.Origin, err error) {
	var in struct {
		Deployment string `json:"deployment"`
	}
	if err := readJSON(c, &in, true); err != nil {
		return svc, "", by, err
	}
	if svc, err = s.service(c); err != nil {
		return svc, "", by, err
	}
	by, err = manual(c)
	return svc, in.Deployment, by, err
}

func (s *Server) rollback(c *gin.Context) error {
	svc, deployment, by, err := s.former(c)
	if err != nil {
		return err
	}
	d, err := s.cfg.Deployer.Rollback(c.Request.Context(), svc, deployment, by)
	if err != nil {
		return err
	}
	c.JSON(http.StatusAccepted, d)
	return nil
}

func (s *Server) redeploy(c *gin.Context) error {
	svc, deployment, by, err := s.former(c)
	if err != nil {
		return err
	}
	ctx := c.Request.Context()
	dep, err := s.repeatable(ctx, svc, deployment)
	if err != nil {
		return err
	}
	src := dep.Source
	if src.GitURL != "" {
		src.Connection = ""
		if src, err = s.connected(ctx, svc, src); err != nil {
			return err
		}
	}
	d, err := s.cfg.Deployer.Redeploy(ctx, svc, dep, src, by)
	if err != nil {
		return err
	}
	c.JSON(http.StatusAccepted, d)
	return nil
}

// repeatable is the deployment of that ID; "" is the newest that is no preview.
func (s *Server) repeatable(ctx context.Context, svc leapcell.Service, id string) (leapcell.Deployment, error) {
	if id != "" {
		dep, err := s.cfg.Store.Deployment(ctx, id)
		if err == nil && dep.ServiceID != svc.ID {
			err = leapcell.Errorf(leapcell.CodeNotFound, "the service %s has no deployment %q", svc.Name, id)
		}
		return dep, err
	}
	all, err := s.cfg.Store.ListDeployments(ctx, svc.ID, leapcell.DeploymentQuery{})
	if err != nil {
		return leapcell.Deployment{}, err
	}
	for _, dep := range all {
		if dep.Preview == "" {
			return dep, nil
		}
	}
	return leapcell.Deployment{}, leapcell.Errorf(leapcell.CodeConflict, "the service %s has no deployment yet: there is nothing to repeat", svc.Name)
}

// traffic is the body of an answer about it.
type traffic struct {
	Split *leapcell.Split `json:"split"`
}

func (s *Server) getTraffic(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	split, err := s.cfg.Deployer.Traffic(c.Request.Context(), svc)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, traffic{split})
	return nil
}

func (s *Server) putTraffic(c *gin.Context) error {
	var in struct {
		Deployment string `json:"deployment"`
		Percent    int    `json:"percent"`
	}
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	split, err := s.cfg.Deployer.Split(c.Request.Context(), svc, in.Deployment, in.Percent)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, traffic{split})
	return nil
}

func (s *Server) deploymentLog(c *gin.Context) error {
	var o leapcell.LogOptions
	var err error
	if o.Follow, err = boolQuery(c, "follow"); err != nil {
		return err
	}
	if o.Timestamps, err = boolQuery(c, "timestamps"); err != nil {
		return err
	}
	offset, err := intQuery(c, "offset", 0, 0, math.MaxInt)
	if err != nil {
		return err
	}
	o.Offset = int64(offset)
	ctx, stop := s.untilStop(c)
	defer stop()
	r, err := s.cfg.Deployer.Log(ctx, c.Param("deployment"), o)
	if err != nil {
		return err
	}
	return s.stream(ctx, c, r)
}

// isStopped reports whether err only says that the request or the server ended.
func isStopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.Canceled)
}
