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
	var q leapcell.DeploymentQuery
	var states []string
	cmd := &cobra.Command{
		Use: "deployments SERVICE", Short: "List the deployments of a service, newest first", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Long: `Lists the deployments of a service, newest first. IMAGE is its size, and says when it is no longer kept: such a
deployment cannot be rolled back to, but "leapcell redeploy" builds it again. -o json has all that is known.`,
		Example: "  leapcell deployments go\n  leapcell deployments go --state failed --limit 5\n  leapcell deployments go --branch main -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			for _, state := range states {
				q.States = append(q.States, leapcell.State(state))
			}
			all, err := c.Deployments(cmd.Context(), args[0], q)
			if err != nil {
				return err
			}
			rows := [][]string{{"DEPLOYMENT", "STATE", "CREATED", "SOURCE", "COMMIT", "AUTHOR", "TOOK", "IMAGE", "BY", "PROBLEM"}}
			for _, d := range all {
				rows = append(rows, []string{
					d.ID, stateText(d), ago(time.Now(), d.CreatedAt), sourceText(d.Source), dash(commitText(d)), dash(d.Author),
					tookText(d), imageText(d), dash(byText(d)), problemText(d.Error),
				})
			}
			return a.show(all, rows...)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&q.Limit, "limit", 50, "at most so many, up to 1000")
	fl.IntVar(&q.Before, "before", 0, "those with smaller numbers: the next page")
	fl.StringSliceVar(&states, "state", nil, "those in this state, such as live or failed")
	fl.StringVar(&q.Branch, "branch", "", "those of this branch")
	return cmd
}

// commitText is the short commit with the first line of its message, cut for a table.
func commitText(d leapcell.Deployment) string {
	subject := []rune(d.Subject)
	if len(subject) > 40 {
		subject = append(subject[:39], '…')
	}
	return strings.TrimSpace(d.Source.Commit[:min(len(d.Source.Commit), 7)] + " " + string(subject))
}

func tookText(d leapcell.Deployment) string {
	if d.Took() == 0 {
		return "-"
	}
	return d.Took().Round(100 * time.Millisecond).String()
}

// imageText is the size of the image, and whether it is still there.
func imageText(d leapcell.Deployment) string {
	bytes := d.ImageBytes
	if d.Whole() {
		bytes = d.Static.Bytes
	}
	size := "?"
	if bytes > 0 {
		size = bytesText(bytes)
	}
	switch {
	case d.Image == "":
		return "-"
	case !d.HasImage():
		return size + ", not kept"
	}
	return size
}

// byText says who or what made the deployment, and made it live again.
func byText(d leapcell.Deployment) string {
	by := d.StartedBy
	switch d.Trigger {
	case leapcell.Push, leapcell.Change:
		by = strings.TrimSpace(string(d.Trigger) + " by " + d.StartedBy)
	case leapcell.Redeploy:
		by = "redeploy of " + d.Of + " by " + d.StartedBy
	}
	if d.RestoredBy != "" {
		by += "; rollback of " + d.RestoredFrom + " by " + d.RestoredBy
	}
	return strings.TrimPrefix(by, "; ")
}

func (a *app) redeployCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use: "redeploy SERVICE [DEPLOYMENT]", Short: "Deploy the source of a deployment again, in a fresh build", Args: between(1, 2, "SERVICE [DEPLOYMENT]"),
		ValidArgsFunction: a.completeDeployment,
		Long: `Deploys the same commit, upload or image again, with the settings that the deployment had: of the newest deployment
unless one is named. The build begins anew; variables are those of today.`,
		Example: "  leapcell redeploy go\n  leapcell redeploy go go-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Redeploy(cmd.Context(), args[0], strings.Join(args[1:], ""))
			if err != nil {
				return err
			}
			if detach {
				return a.show(d, []string{d.ID + ": follow it with `leapcell deployment log " + d.ID + " -f`"})
			}
			return a.follow(cmd.Context(), c, d)
		},
	}
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the deployment")
	return cmd
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
	case s.Image != "":
		return "image " + s.Image
	case s.GitURL != "":
		return strings.TrimSpace("git " + s.GitURL + " " + first(s.Branch, s.Tag))
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
		{"started by", dash(byText(d))}, {"preview", dash(d.PreviewURL)},
		{"image", dash(d.Image)}, {"size", imageText(d)}, {"took", tookText(d)}, {"created", d.CreatedAt.Local().Format(time.DateTime)}, {"live since", live},
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
