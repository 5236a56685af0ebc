package server

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
)

// EnvStore reads sealed environments.
type EnvStore interface {
	Env(ctx context.Context, serviceID string) (leapcell.SealedEnv, error)
}

// EnvSetter seals and stores variables and brings them to the running instances.
type EnvSetter interface {
	SetEnv(ctx context.Context, svc leapcell.Service, set map[string]string, unset []string) (leapcell.SealedEnv, error)
}

// EnvOpener opens a sealed value by the right of a token of Vault: the control plane itself has none to.
type EnvOpener interface {
	OpenAs(ctx context.Context, token, serviceID, sealed string) (string, error)
}

// envNames is an environment as the API shows it to all but the role secrets. [EN4]
type envNames struct {
	Version int      `json:"version"`
	Names   []string `json:"names"`
}

func namesOf(env leapcell.SealedEnv) envNames {
	out := envNames{Version: env.Version, Names: slices.Sorted(maps.Keys(env.Values))}
	if out.Names == nil {
		out.Names = []string{}
	}
	return out
}

func (s *Server) getEnv(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	env, err := s.cfg.Store.Env(c.Request.Context(), svc.ID)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, namesOf(env))
	return nil
}

// openEnv reads one value back. Who tried is in the log before the value is in the answer. [EN4]
func (s *Server) openEnv(c *gin.Context) (err error) {
	name, service, value := c.Param("name"), c.Param("service"), ""
	defer func() {
		s.cfg.Log.Info("audit: a variable was read back", "service", service, "name", name, "ok", err == nil,
			"token", c.GetString(keyToken), "from", c.Request.RemoteAddr, "request", c.GetString(keyRequestID))
		if err == nil {
			c.Header("Cache-Control", "no-store")
			c.JSON(http.StatusOK, gin.H{"name": name, "value": value})
		}
	}()
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	service = svc.ID
	env, err := s.cfg.Store.Env(c.Request.Context(), svc.ID)
	if err != nil {
		return err
	}
	sealed, ok := env.Values[name]
	if !ok {
		return leapcell.Errorf(leapcell.CodeNotFound, "the service %s has no variable %q", svc.Name, name)
	}
	value, err = s.cfg.Opener.OpenAs(c.Request.Context(), bearer(c), svc.ID, sealed)
	return err
}

func (s *Server) updateEnv(c *gin.Context) error {
	var in struct {
		Set   map[string]string `json:"set"`
		Unset []string          `json:"unset"`
	}
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	env, err := s.cfg.Env.SetEnv(c.Request.Context(), svc, in.Set, in.Unset)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, namesOf(env))
	return nil
}
