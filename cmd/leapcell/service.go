package main

import (
	"bufio"
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
)

func (a *app) serviceCommands() []*cobra.Command {
	return []*cobra.Command{
		a.deployCommand(), a.servicesCommand(), a.serviceCommand(), a.deploymentsCommand(), a.deploymentCommand(),
		a.logsCommand(), a.usageCommand(), a.envCommand(), a.rollbackCommand(), a.redeployCommand(), a.sbomCommand(), a.provenanceCommand(), a.trafficCommand(), a.gitCommand(), a.cacheCommand(), a.runtimesCommand(), a.deleteCommand(),
	}
}

func (a *app) servicesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "services", Short: "List the services", Args: cobra.NoArgs, Aliases: []string{"ls"},
		Example: "  leapcell services\n  leapcell services -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := a.listServices(cmd.Context())
			if err != nil {
				return err
			}
			if len(services) == 0 && a.output == "table" {
				_, err := fmt.Fprintln(a.err, "there are none yet: `leapcell deploy FOLDER` makes one")
				return err
			}
			rows := [][]string{{"NAME", "KIND", "LIVE", "URL", "CREATED"}}
			for _, s := range services {
				rows = append(rows, []string{s.Name, kind(s), dash(s.Live), s.URL, ago(time.Now(), s.CreatedAt)})
			}
			return a.show(services, rows...)
		},
	}
}

// kind says how a service lives, as far as its settings and its live deployment tell.
func kind(s leapcell.Service) string {
	if s.Static != nil && s.Static.Whole {
		return "static"
	}
	return string(cmp.Or(s.Settings.Mode, leapcell.Serverless))
}

// front says what of the live deployment edges serve without an instance.
func front(s *leapcell.Static) string {
	if s == nil {
		return "-"
	}
	text := fmt.Sprintf("%d files of %s", s.Files, s.Folder)
	if s.Framework != "" {
		text = s.Framework + ", " + text
	}
	if s.Whole {
		return text + "; no instance is needed"
	}
	return text
}

func (a *app) serviceCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show SERVICE", Short: "Show one service with its settings and instances", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell service show go\n  leapcell service show go -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			service, err := c.Service(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			instances, err := c.Instances(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.showService(service, instances)
		},
	}
	set := a.serviceSetCommand()
	parent := &cobra.Command{Use: "service", Short: "Show or change one service"}
	parent.AddCommand(show, set)
	return parent
}

func (a *app) showService(s leapcell.Service, instances []leapcell.Instance) error {
	if a.output == "json" {
		return a.json(struct {
			leapcell.Service
			Instances []leapcell.Instance `json:"instances"`
		}{s, instances})
	}
	set := s.Settings.Over(leapcell.DefaultSettings())
	rows := [][]string{
		{"name", s.Name}, {"id", s.ID}, {"url", s.URL}, {"live", dash(s.Live)}, {"front end", front(s.Static)},
		{"runtime", dash(set.Runtime)}, {"build", dash(set.BuildCommand)}, {"start", dash(set.StartCommand)},
		{"port", fmt.Sprint(set.Port)}, {"memory", fmt.Sprintf("%d MB", set.MemoryMB)}, {"mode", string(set.Mode)},
		{"instances", fmt.Sprintf("at most %d, each up to %d requests at a time", set.MaxInstances, set.Concurrency)},
		{"dormant after", set.DormantAfter.String()}, {"created", s.CreatedAt.Local().Format(time.DateTime)},
	}
	if err := a.table(rows...); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\n%d instances\n", len(instances))
	if len(instances) == 0 {
		return nil
	}
	rows = [][]string{{"INSTANCE", "DEPLOYMENT", "STATUS", "ADDRESS"}}
	for _, i := range instances {
		rows = append(rows, []string{i.ID, i.Deployment, i.Status, i.Address})
	}
	return a.table(rows...)
}

func (a *app) serviceSetCommand() *cobra.Command {
	var f settingFlags
	cmd := &cobra.Command{
		Use: "set SERVICE", Short: "Change settings of a service; the next deployment uses them", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell service set go --memory 512mb --dormant-after 5m",
		RunE: func(cmd *cobra.Command, args []string) error {
			settings, err := f.settings(cmd)
			if err != nil {
				return err
			}
			if settings.IsZero() {
				return leapcell.Errorf(leapcell.CodeInvalid, "nothing to set: see `leapcell service set --help`")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			service, err := c.UpdateService(cmd.Context(), args[0], settings)
			if err != nil {
				return err
			}
			return a.showService(service, nil)
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) rollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rollback SERVICE [DEPLOYMENT]", Short: "Make a former deployment live again; the last one unless named", Args: between(1, 2, "SERVICE [DEPLOYMENT]"),
		ValidArgsFunction: a.completeDeployment,
		Example:           "  leapcell rollback go\n  leapcell rollback go go-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Rollback(cmd.Context(), args[0], strings.Join(args[1:], ""))
			if err != nil {
				return err
			}
			if d, err = c.Wait(cmd.Context(), d.ID); err != nil {
				return err
			}
			return a.finished(cmd.Context(), c, d)
		},
	}
}

func (a *app) deleteCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete SERVICE", Short: "Delete a service with its deployments, variables and images", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell delete go\n  leapcell delete go --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			service, err := c.Service(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !yes && !a.confirmed(service) {
				return leapcell.Errorf(leapcell.CodeCancelled, "nothing was deleted; --yes deletes without asking")
			}
			if err := c.DeleteService(cmd.Context(), service.ID); err != nil {
				return err
			}
			return a.show(map[string]string{"deleted": service.ID}, []string{"deleted " + service.Name})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) confirmed(s leapcell.Service) bool {
	fmt.Fprintf(a.err, "Delete %s with everything that belongs to it? Type its name: ", s.Name)
	line, _ := bufio.NewReader(a.in).ReadString('\n') // nothing typed is a no
	return strings.TrimSpace(line) == s.Name
}

// exactly and between say what is missing, where cobra counts.
func exactly(n int, names string) cobra.PositionalArgs { return between(n, n, names) }

func between(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return leapcell.Errorf(leapcell.CodeInvalid, "%s needs %s, got %d: see `%s --help`", cmd.CommandPath(), names, len(args), cmd.CommandPath())
		}
		return nil
	}
}
