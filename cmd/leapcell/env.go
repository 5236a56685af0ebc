package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/internal/platform"
)

func (a *app) envCommand() *cobra.Command {
	set := &cobra.Command{
		Use: "set SERVICE NAME=VALUE…", Short: "Set variables; running instances are replaced one by one", Args: atLeast(2, "SERVICE NAME=VALUE…"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell env set go GREETING=hello DATABASE_URL=postgres://db/app\n  leapcell env set go TOKEN=- < token.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := a.assignments(args[1:])
			if err != nil {
				return err
			}
			return a.changeEnv(cmd, args[0], values, nil)
		},
	}
	unset := &cobra.Command{
		Use: "unset SERVICE NAME…", Short: "Remove variables", Args: atLeast(2, "SERVICE NAME…"),
		ValidArgsFunction: a.completeVariable,
		Example:           "  leapcell env unset go GREETING",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeEnv(cmd, args[0], nil, args[1:])
		},
	}
	list := &cobra.Command{
		Use: "list SERVICE", Short: "List the names of the variables", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell env list go",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			env, err := c.Env(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.showEnv(env)
		},
	}
	get := &cobra.Command{
		Use: "get SERVICE NAME", Short: "Read the value of a variable back; the control plane's log says that you did", Args: exactly(2, "SERVICE NAME"),
		Long: "Read the value of a variable back. This takes a token of the role secrets, which no other command takes: that of the platform on this machine, " +
			"or the one that --token, --token-file or their variables give. The control plane's log says which token read which variable, and when.",
		ValidArgsFunction: a.completeVariable,
		Example:           "  leapcell env get go GREETING\n  leapcell env get go GREETING --api https://api.example.com --token-file secrets.token",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.clientAs(platform.Config.SecretsTokenFile)
			if err != nil {
				return err
			}
			value, err := c.EnvValue(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]string{"name": args[1], "value": value})
			}
			_, err = fmt.Fprintln(a.out, value) // as it is: a table would change it
			return err
		},
	}
	cmd := &cobra.Command{Use: "env", Short: "Set, remove, list and read the variables of a service"}
	cmd.AddCommand(set, unset, list, get)
	return cmd
}

func (a *app) changeEnv(cmd *cobra.Command, service string, set map[string]string, unset []string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	env, err := c.SetEnv(cmd.Context(), service, set, unset)
	if err != nil {
		return err
	}
	return a.showEnv(env)
}

func (a *app) showEnv(env client.Env) error {
	rows := [][]string{{"NAME"}}
	for _, name := range env.Names {
		rows = append(rows, []string{name})
	}
	return a.show(env, rows...)
}

// assignments reads NAME=VALUE; the value "-" is read from standard input, so that it stays
// out of the shell's history and the list of processes.
func (a *app) assignments(args []string) (map[string]string, error) {
	values := map[string]string{}
	fromInput := ""
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "%q is no variable: write NAME=VALUE", arg)
		}
		if _, twice := values[name]; twice {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "%s is set twice", name)
		}
		if value == "-" {
			if fromInput != "" {
				return nil, leapcell.Errorf(leapcell.CodeInvalid, "both %s and %s are to be read from standard input", fromInput, name)
			}
			fromInput = name
			text, err := readLimited(a.in, leapcell.MaxEnvBytes+2)
			if err != nil {
				return nil, fmt.Errorf("reading the value of %s: %w", name, err)
			}
			value = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
		}
		values[name] = value
	}
	return values, leapcell.ValidateEnv(values)
}

func (a *app) completeVariable(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeService(cmd, args, toComplete)
	}
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	env, err := c.Env(cmd.Context(), args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return env.Names, cobra.ShellCompDirectiveNoFileComp
}

func atLeast(n int, names string) cobra.PositionalArgs { return between(n, 1<<20, names) }
