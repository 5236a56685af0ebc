package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/internal/platform"
)

// client finds the API: by flag, then by variable, then by the platform on this machine, whose admin
// one is then.
func (a *app) client() (*client.Client, error) { return a.clientAs(platform.Config.AdminTokenFile) }

// clientAs is client with another token of the platform on this machine.
func (a *app) clientAs(local func(platform.Config) string) (*client.Client, error) {
	address, token := first(a.api, a.getenv("LEAPCELL_API")), first(a.token, a.getenv("LEAPCELL_TOKEN"))
	tokenFile := first(a.tokenFile, a.getenv("LEAPCELL_TOKEN_FILE"))
	if address == "" || token == "" && tokenFile == "" {
		cfg, known, err := platform.LoadConfig(a.platformDir())
		if err != nil {
			return nil, err
		}
		if !known && address == "" {
			return nil, leapcell.Errorf(leapcell.CodeUnavailable,
				"there is no platform in %s, and neither --api nor LEAPCELL_API names one elsewhere", cfg.StateDir)
		}
		if !known {
			return nil, leapcell.Errorf(leapcell.CodeUnauthorized, "a token is needed for %s", address)
		}
		address = first(address, cfg.APIAddress())
		tokenFile = first(tokenFile, local(cfg))
	}
	if token == "" {
		b, err := os.ReadFile(tokenFile)
		if errors.Is(err, fs.ErrPermission) {
			return nil, leapcell.Errorf(leapcell.CodeUnauthorized, "the token in %s may only be read by its owner: use sudo, or a token of your own", tokenFile)
		}
		if err != nil {
			return nil, leapcell.Errorf(leapcell.CodeUnauthorized, "the token cannot be read: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	return client.New(address, token), nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func (a *app) listServices(ctx context.Context) ([]leapcell.Service, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return c.Services(ctx)
}

// completeService offers the names of services for the first argument.
func (a *app) completeService(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	services, err := a.listServices(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = s.Name + "\t" + s.URL
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeDeployment offers services first, then the deployments of the one that was named.
func (a *app) completeDeployment(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeService(cmd, args, toComplete)
	}
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	deployments, err := c.Deployments(ctx, args[0], leapcell.DeploymentQuery{Limit: 20})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ids := make([]string, len(deployments))
	for i, d := range deployments {
		ids[i] = fmt.Sprintf("%s\t%s", d.ID, d.State)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
