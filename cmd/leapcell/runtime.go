package main

import (
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
)

func (a *app) runtimesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "runtimes", Short: "List the runtimes and the systems that they stand on", Args: cobra.NoArgs,
		Example: "  leapcell runtimes\n  leapcell runtimes -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.Runtimes(cmd.Context())
			if err != nil {
				return err
			}
			rows := [][]string{{"RUNTIME", "VERSION", "OTHERS", "SYSTEM", "MADE", "PROBLEM"}}
			for _, r := range all {
				others := make([]string, len(r.Others))
				for i, v := range r.Others {
					others[i] = v.Version
				}
				for i, s := range r.Systems {
					row := []string{r.Name, dash(r.Version), dash(strings.Join(others, ", ")), s.Name, madeText(s), problemText(problemOf(s))}
					if i > 0 {
						row[0], row[1], row[2] = "", "", ""
					}
					rows = append(rows, row)
				}
			}
			return a.show(all, rows...)
		},
	}
	cmd.AddCommand(a.runtimesUpdateCommand())
	return cmd
}

func problemOf(s client.System) *leapcell.Problem {
	if s.Error == "" {
		return nil
	}
	return &leapcell.Problem{Message: s.Error}
}

func madeText(s client.System) string {
	switch {
	case s.Making:
		return "being made"
	case s.Image == "":
		return "when it is needed"
	case s.MadeAt.IsZero():
		return "-"
	}
	return ago(time.Now(), s.MadeAt)
}

func (a *app) runtimesUpdateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "update [RUNTIME]", Short: "Make the systems of a runtime, or of all, anew with the packages of today", Args: between(0, 1, "at most one RUNTIME"),
		Long: `Makes the systems that builds and instances of a runtime stand on anew, with the packages or the image of today. The next
build of each service uses them; what runs keeps the former ones until it is deployed again.`,
		Example: "  leapcell runtimes update python\n  leapcell runtimes update",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.Runtimes(cmd.Context())
			if err != nil {
				return err
			}
			names := args
			if len(args) == 0 {
				for _, r := range all {
					names = append(names, r.Name)
				}
			}
			for _, name := range names {
				stream, err := c.UpdateRuntime(cmd.Context(), name)
				if err != nil {
					return err
				}
				_, err = io.Copy(a.err, stream)
				stream.Close()
				if err != nil {
					return err
				}
			}
			if all, err = c.Runtimes(cmd.Context()); err != nil {
				return err
			}
			return a.updated(all, names)
		},
	}
}

// updated shows how the update of the runtimes with these names ended.
func (a *app) updated(all []client.Runtime, names []string) error {
	for _, r := range all {
		for _, name := range names {
			if base, _, _ := strings.Cut(name, "@"); base != r.Name {
				continue
			}
			for _, s := range r.Systems {
				if s.Error != "" {
					return leapcell.Errorf(leapcell.CodeUnavailable, "%s: %s", s.Name, s.Error)
				}
			}
		}
	}
	return a.show(all, []string{"done: the next builds use them"})
}

func (a *app) cacheCommand() *cobra.Command {
	clear := &cobra.Command{
		Use: "clear SERVICE", Short: "Remove what nodes keep between builds of a service", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell cache clear shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.ClearCache(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.show(map[string]string{"service": args[0]}, []string{"the next build of " + args[0] + " fetches its dependencies anew"})
		},
	}
	cmd := &cobra.Command{Use: "cache", Short: "Dependencies that are kept between builds"}
	cmd.AddCommand(clear)
	return cmd
}
