package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
)

// ServiceStore keeps services.
type ServiceStore interface {
	CreateService(ctx context.Context, svc leapcell.Service) error
	Service(ctx context.Context, nameOrID string) (leapcell.Service, error)
	Services(ctx context.Context) ([]leapcell.Service, error)
	UpdateService(ctx context.Context, id string, change func(*leapcell.Service) error) (leapcell.Service, error)
	DeleteService(ctx context.Context, id string) error
}

func (s *Server) createService(c *gin.Context) error {
	var in struct {
		Name     string            `json:"name"`
		Settings leapcell.Settings `json:"settings"`
	}
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	svc, err := s.newService(in.Name, in.Settings)
	if err != nil {
		return err
	}
	if err := s.cfg.Store.CreateService(c.Request.Context(), svc); err != nil {
		return err
	}
	if svc, err = s.cfg.Store.Service(c.Request.Context(), svc.ID); err != nil {
		return err
	}
	c.JSON(http.StatusCreated, svc)
	return nil
}

func (s *Server) newService(name string, settings leapcell.Settings) (leapcell.Service, error) {
	if err := leapcell.ValidateName(name); err != nil {
		return leapcell.Service{}, err
	}
	// The build job of deployment 1 of "x" has the ID that deployment 1 of a service
	// "build-x" would have; the same holds for "prefetch-x".
	for _, prefix := range []string{"build-", leapcell.PrefetchPrefix, leapcell.ForgetPrefix} {
		if strings.HasPrefix(name, prefix) {
			return leapcell.Service{}, leapcell.Errorf(leapcell.CodeInvalid, "the name %q cannot be used: names that start with %s are the platform's", name, prefix)
		}
	}
	if err := settings.Validate(); err != nil {
		return leapcell.Service{}, err
	}
	id := fmt.Sprintf("%s-%s-%s", name, s.cfg.Workspace, strings.ToLower(rand.Text()[:8]))
	host := id + "." + s.cfg.Domain
	address, err := publicURL(s.cfg.PublicURL, host)
	if err != nil {
		return leapcell.Service{}, err
	}
	return leapcell.Service{ID: id, Name: name, Workspace: s.cfg.Workspace, Host: host, URL: address, Settings: settings}, nil
}

// publicURL is the address of host when the edge is reached at base.
func publicURL(base, host string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "the public URL %q cannot be used: it must be like http://%s:8080", base, host)
	}
	out := url.URL{Scheme: u.Scheme, Host: host}
	if port := u.Port(); port != "" {
		out.Host += ":" + port
	}
	return out.String(), nil
}

func (s *Server) listServices(c *gin.Context) error {
	all, err := s.cfg.Store.Services(c.Request.Context())
	if err != nil {
		return err
	}
	for i := range all {
		if all[i], err = s.withFront(c.Request.Context(), all[i]); err != nil {
			return err
		}
	}
	c.JSON(http.StatusOK, all)
	return nil
}

// withFront adds the front end of the live deployment.
func (s *Server) withFront(ctx context.Context, svc leapcell.Service) (leapcell.Service, error) {
	if svc.Live == "" {
		return svc, nil
	}
	dep, err := s.cfg.Store.Deployment(ctx, svc.Live)
	svc.Static = dep.Static
	return svc, err
}

// service is the service that the path names.
func (s *Server) service(c *gin.Context) (leapcell.Service, error) {
	return s.cfg.Store.Service(c.Request.Context(), c.Param("service"))
}

func (s *Server) getService(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	if svc, err = s.withFront(c.Request.Context(), svc); err != nil {
		return err
	}
	c.JSON(http.StatusOK, svc)
	return nil
}

func (s *Server) updateService(c *gin.Context) error {
	var in struct {
		Settings map[string]json.RawMessage `json:"settings"`
	}
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	svc, err := s.cfg.Store.UpdateService(c.Request.Context(), c.Param("service"), func(svc *leapcell.Service) error {
		merged, err := mergeSettings(svc.Settings, in.Settings)
		svc.Settings = merged
		return err
	})
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, svc)
	return nil
}

// mergeSettings applies a JSON merge patch (RFC 7396): null takes a setting back.
func mergeSettings(old leapcell.Settings, patch map[string]json.RawMessage) (leapcell.Settings, error) {
	b, err := json.Marshal(old)
	if err != nil {
		return old, fmt.Errorf("settings: %w", err)
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &all); err != nil {
		return old, fmt.Errorf("settings: %w", err)
	}
	for name, value := range patch {
		all[name] = value
		if bytes.Equal(bytes.TrimSpace(value), []byte("null")) {
			// Into a field of Go null writes nothing; that is "not set", and an unknown
			// name is still found.
			all[name] = json.RawMessage("null")
		}
	}
	if b, err = json.Marshal(all); err != nil {
		return old, leapcell.Errorf(leapcell.CodeInvalid, "the settings cannot be used: %w", err)
	}
	var merged leapcell.Settings
	if err := decodeJSON(b, &merged); err != nil {
		return old, err
	}
	return merged, merged.Validate()
}

// deleteService removes everything in an order in which a failure leaves what is needed to
// repeat the call: the row goes last.
func (s *Server) deleteService(c *gin.Context) error {
	ctx := c.Request.Context()
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	if err := s.cfg.Deployer.DeleteService(ctx, svc); err != nil {
		return err
	}
	if err := s.cfg.Cleaner.Clean(ctx, svc); err != nil {
		return err
	}
	if err := s.cfg.Store.DeleteService(ctx, svc.ID); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}

func (s *Server) listInstances(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	instances, err := s.cfg.Instances.Instances(c.Request.Context(), svc.Name)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, instances)
	return nil
}
