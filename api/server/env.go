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

// envNames is an environment as the API shows it: values cannot be read back. [EN4]
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
