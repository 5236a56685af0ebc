package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell/internal/platform"
)

// version is set by the build.
var version = "dev"

// app is what all commands share: where they talk to, and how.
type app struct {
	in       io.Reader
	out, err io.Writer
	environ  []string

	stateDir  string
	api       string
	token     string
	tokenFile string
	output    string

	timestamps bool // of the lines of a deployment's log
}

// run is the whole program: it parses args, does it, and gives the exit code.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, out: stdout, err: stderr, environ: environ}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var silent *exitError
	if errors.As(err, &silent) {
		return silent.code
	}
	if a.output == "json" {
		fmt.Fprintln(stderr, errorJSON(err))
	} else {
		fmt.Fprint(stderr, errorText(err))
	}
	return 1
}

// exitError ends the program after all has been said.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// command is the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "leapcell",
		Short: "A serverless platform on Nomad: push code, get a URL, pay nothing while idle",
		Example: `  leapcell up                  # the whole platform on this machine
  leapcell deploy examples/go  # a folder becomes a service with a URL
  leapcell logs go -f`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkOutput() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w\nsee `%s --help`", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.stateDir, "state-dir", a.getenv("LEAPCELL_STATE_DIR"),
		"folder of the platform on this machine; default "+platform.DefaultStateDir+" here or in the nearest folder above (LEAPCELL_STATE_DIR)")
	flags.StringVar(&a.api, "api", "", "address of the API; default that of the platform on this machine (LEAPCELL_API)")
	flags.StringVar(&a.token, "token", "", "API token (LEAPCELL_TOKEN)")
	flags.StringVar(&a.tokenFile, "token-file", "", "file with the API token (LEAPCELL_TOKEN_FILE)")
	flags.StringVarP(&a.output, "output", "o", "table", "table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.MarkPersistentFlagDirname("state-dir")

	root.AddGroup(&cobra.Group{ID: "platform", Title: "The platform on this machine:"},
		&cobra.Group{ID: "service", Title: "Services:"})
	for _, c := range []*cobra.Command{a.upCommand(), a.downCommand(), a.statusCommand(), a.toolsCommand()} {
		c.GroupID = "platform"
		root.AddCommand(c)
	}
	for _, c := range a.serviceCommands() {
		c.GroupID = "service"
		root.AddCommand(c)
	}
	root.AddCommand(a.versionCommand())
	return root
}

func (a *app) getenv(name string) string {
	for _, entry := range a.environ {
		if k, v, _ := strings.Cut(entry, "="); k == name {
			return v
		}
	}
	return ""
}

func (a *app) checkOutput() error {
	if a.output != "table" && a.output != "json" {
		return fmt.Errorf("--output is %q: it must be table or json", a.output)
	}
	return nil
}

// platformDir is the state folder that the commands mean.
func (a *app) platformDir() string {
	if a.stateDir != "" {
		return a.stateDir
	}
	if wd, err := os.Getwd(); err == nil {
		if found, ok := platform.FindStateDir(wd); ok {
			return found
		}
	}
	return platform.DefaultStateDir
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: "  leapcell version\n  leapcell version -o json",
		RunE: func(*cobra.Command, []string) error {
			if a.output == "json" {
				return a.json(map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(a.out, "leapcell", version)
			return err
		},
	}
}
