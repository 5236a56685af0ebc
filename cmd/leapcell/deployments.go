package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
)

func (a *app) deploymentsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "deployments SERVICE", Short: "List the deployments of a service, newest first", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell deployments go\n  leapcell deployments go -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.Deployments(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			rows := [][]string{{"DEPLOYMENT", "STATE", "SOURCE", "CREATED", "PROBLEM"}}
			for _, d := range all {
				rows = append(rows, []string{d.ID, stateText(d), sourceText(d.Source), ago(time.Now(), d.CreatedAt), problemText(d.Error)})
			}
			return a.show(all, rows...)
		},
	}
}

// stateText is the state as people mean it: a preview that can be seen is no former version.
func stateText(d leapcell.Deployment) string {
	switch {
	case d.PreviewURL != "":
		return "preview " + d.PreviewURL
	case !d.PreviewEnded.IsZero():
		return "preview ended"
	}
	return string(d.State)
}

func sourceText(s leapcell.Source) string {
	short := func(s string) string { return s[:min(len(s), 10)] }
	switch {
	case s.GitURL != "" && s.Commit != "":
		return s.GitURL + "@" + short(s.Commit)
	case s.GitURL != "":
		return s.GitURL
	case s.Upload != "":
		return "upload " + short(s.Upload)
	}
	return "-"
}

// problemText fits into a table: `deployment show` has all of it.
func problemText(p *leapcell.Problem) string {
	if p == nil {
		return ""
	}
	line, _, more := strings.Cut(p.Message, "\n")
	if more {
		line = strings.TrimSuffix(line, ":") + " …"
	}
	return line
}

func (a *app) deploymentCommand() *cobra.Command {
	var follow bool
	show := &cobra.Command{
		Use: "show DEPLOYMENT", Short: "Show one deployment", Args: exactly(1, "DEPLOYMENT"),
		Example: "  leapcell deployment show go-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Deployment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.showDeployment(d)
		},
	}
	log := &cobra.Command{
		Use: "log DEPLOYMENT", Short: "Print the log of a deployment", Args: exactly(1, "DEPLOYMENT"),
		Example: "  leapcell deployment log go-3 -f\n  leapcell deployment log go-3 --timestamps",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if follow {
				d, err := c.Deployment(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.follow(cmd.Context(), c, d)
			}
			stream, err := c.DeploymentLog(cmd.Context(), args[0], leapcell.LogOptions{Timestamps: a.timestamps})
			if err != nil {
				return err
			}
			defer stream.Close()
			_, err = io.Copy(a.out, stream)
			return err
		},
	}
	log.Flags().BoolVarP(&a.timestamps, "timestamps", "t", false, "begin each line with its time")
	log.Flags().BoolVarP(&follow, "follow", "f", false, "until the deployment is done")
	cancel := &cobra.Command{
		Use: "cancel DEPLOYMENT", Short: "Stop a deployment that is not done", Args: exactly(1, "DEPLOYMENT"),
		Example: "  leapcell deployment cancel go-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Cancel(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(d, []string{d.ID + " is " + string(d.State)})
		},
	}
	cmd := &cobra.Command{Use: "deployment", Short: "Show, follow or stop one deployment"}
	cmd.AddCommand(show, log, cancel)
	return cmd
}

func (a *app) showDeployment(d leapcell.Deployment) error {
	live := "-"
	if !d.LiveAt.IsZero() {
		live = d.LiveAt.Local().Format(time.DateTime)
	}
	rows := [][]string{
		{"deployment", d.ID}, {"service", d.Service}, {"state", string(d.State)}, {"source", sourceText(d.Source)},
		{"runtime", dash(d.Settings.Runtime)}, {"build", dash(d.Settings.BuildCommand)}, {"start", dash(d.Settings.StartCommand)},
		{"branch", dash(first(d.Source.Branch, d.Source.Tag))}, {"commit", dash(strings.TrimSpace(d.Source.Commit + " " + d.Subject))}, {"author", dash(d.Author)},
		{"started by", dash(d.StartedBy)}, {"preview", dash(d.PreviewURL)},
		{"image", dash(d.Image)}, {"created", d.CreatedAt.Local().Format(time.DateTime)}, {"live since", live},
	}
	if d.Place > 0 {
		rows = append(rows, []string{"place in queue", fmt.Sprint(d.Place)})
	}
	if d.Error != nil {
		rows = append(rows, []string{"problem", d.Error.Message})
		if d.Error.ExitCode != nil {
			rows = append(rows, []string{"exit code", fmt.Sprint(*d.Error.ExitCode)})
		}
		for _, line := range d.Error.LogTail {
			rows = append(rows, []string{"", line})
		}
	}
	return a.show(d, rows...)
}

func (a *app) logsCommand() *cobra.Command {
	var o client.LogOptions
	cmd := &cobra.Command{
		Use: "logs SERVICE", Short: "Print what a service's instances write", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell logs go --tail 20\n  leapcell logs go -f",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			stream, err := c.Logs(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			defer stream.Close()
			_, err = io.Copy(a.out, stream)
			if cmd.Context().Err() != nil {
				return nil // leaving is how following ends
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVar(&o.Tail, "tail", 100, "lines from before")
	return cmd
}
