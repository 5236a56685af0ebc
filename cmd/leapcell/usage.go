package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
)

func (a *app) usageCommand() *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use: "usage SERVICE", Short: "Show what a service used, hour by hour", Args: exactly(1, "SERVICE"),
		Long: `Show what a service used, hour by hour: requests, compute time of serverless instances, running time of persistent
ones, GB-seconds (time x memory), bytes sent to visitors, started instances and build time. The latest few seconds may
be missing. A deleted service is found by its ID.`,
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell usage go\n  leapcell usage go --from 2026-11-01 --to 2026-12-01 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			begin, err := timeFlag("from", from)
			if err != nil {
				return err
			}
			end, err := timeFlag("to", to)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			usage, err := c.Usage(cmd.Context(), args[0], begin, end)
			if err != nil {
				return err
			}
			rows := [][]string{{"HOUR", "REQUESTS", "COMPUTE", "RUNNING", "GB-SECONDS", "EGRESS", "STARTS", "BUILD"}}
			for _, u := range usage.Hours {
				rows = append(rows, usageRow(u.Hour.Local().Format("2006-01-02 15:04"), u))
			}
			return a.show(usage, append(rows, usageRow("total", usage.Total))...)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "day or time, such as 2026-11-22 or 2026-11-22T15:04:05Z; default 24 hours before --to")
	cmd.Flags().StringVar(&to, "to", "", "day or time; default now")
	return cmd
}

// timeFlag reads a point in time, or a day, which is its beginning in local time.
func timeFlag(name, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	t, err := time.ParseInLocation(time.DateOnly, text, time.Local)
	if err != nil {
		return t, leapcell.Errorf(leapcell.CodeInvalid, "--%s is %q: it must be like 2026-11-22 or 2026-11-22T15:04:05Z", name, text)
	}
	return t, nil
}

func usageRow(name string, u leapcell.Usage) []string {
	seconds := func(ms int64) string { return fmt.Sprintf("%.3f s", float64(ms)/1000) }
	return []string{
		name, fmt.Sprint(u.Requests), seconds(u.ComputeMS), seconds(u.RunningMS), fmt.Sprintf("%.3f", u.GBSeconds),
		bytesText(u.EgressBytes), fmt.Sprint(u.ColdStarts), fmt.Sprintf("%.1f s", u.BuildSeconds),
	}
}
