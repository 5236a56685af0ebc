package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
)

func (a *app) trafficCommand() *cobra.Command {
	return &cobra.Command{
		Use: "traffic SERVICE [DEPLOYMENT PERCENT]", Short: "Send a part of the requests to a former deployment",
		Long: `Send a part of the requests to a former deployment, until the next one goes live; 0 ends it.
Without DEPLOYMENT it says what is in effect. Each former deployment that is kept for a
rollback also answers by itself, at {number}--{host of the service}.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 3 {
				return fmt.Errorf("it takes SERVICE, or SERVICE DEPLOYMENT PERCENT\nsee `%s --help`", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell traffic go\n  leapcell traffic go go-3 10   # a tenth of the requests\n  leapcell traffic go go-3 0    # none",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				split, err := c.Traffic(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.showSplit(args[0], split)
			}
			percent, err := strconv.Atoi(strings.TrimSuffix(args[2], "%"))
			if err != nil {
				return fmt.Errorf("PERCENT is %q: it must be a whole number from 0 to 99", args[2])
			}
			split, err := c.Split(cmd.Context(), args[0], args[1], percent)
			if err != nil {
				return err
			}
			return a.showSplit(args[0], split)
		},
	}
}

func (a *app) showSplit(service string, split *leapcell.Split) error {
	text := "all requests of " + service + " go to its live deployment"
	if split != nil {
		text = fmt.Sprintf("%d %% of the requests of %s go to %s, the others to its live deployment", split.Percent, service, split.Deployment)
	}
	return a.show(map[string]any{"split": split}, []string{text})
}
