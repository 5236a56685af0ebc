package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
)

func (a *app) gitCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "git", Short: "Connect a service with a git repository: a push deploys"}
	cmd.AddCommand(a.gitConnectCommand(), a.gitShowCommand(), a.gitDeployCommand(), a.gitRemoveCommand())
	return cmd
}

func (a *app) gitConnectCommand() *cobra.Command {
	var in client.Connect
	var tokenFile, provider string
	cmd := &cobra.Command{
		Use: "connect SERVICE URL", Short: "Connect a service with a repository, or change its connection", Args: between(1, 2, "SERVICE URL"),
		Long: `Connect a service with a git repository. From then on a push to the branch deploys, as soon as the webhook is set up at the
repository's host with the address and the secret that are printed. The service is made if there is none of that name.

With an ssh address a deploy key is made: add the public half to the repository, with read access. The key of the ssh host is
pinned: compare what is printed with what the host publishes, or give it with --host-key. With a token, which is read from a
file or from standard input (-), private repositories are read by https, and the state of each deployment is shown at its commit.

Said again of the same repository it changes the rest; secret and key stay, unless --rotate makes new ones.`,
		Example: `  leapcell git connect shop https://github.com/team/shop.git --branch main --previews --token-file token
  leapcell git connect shop git@git.example.com:team/shop.git --provider gitea --root-dir api`,
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			in.Provider = leapcell.Provider(provider)
			if len(args) < 2 { // a change of the connection that is there
				known, err := c.Connection(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				args = append(args, known.GitURL)
				keep(cmd, "branch", &in.Branch, known.Branch)
				keep(cmd, "root-dir", &in.RootDir, known.RootDir)
				keep(cmd, "previews", &in.Previews, known.Previews)
			}
			in.GitURL = args[1]
			if in.Token, err = a.readSecret(tokenFile); err != nil {
				return err
			}
			service, err := ensureService(cmd.Context(), c, args[0], leapcell.Settings{})
			if err != nil {
				return err
			}
			out, err := c.Connect(cmd.Context(), service.ID, in)
			if err != nil {
				return err
			}
			return a.showConnection(c, service.Name, out)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&in.Branch, "branch", "main", "whose pushes deploy")
	fl.StringVar(&in.RootDir, "root-dir", "", "folder within the repository that is the app")
	fl.BoolVar(&in.Previews, "previews", false, "deploy other branches and pull requests too, each under a name of its own")
	fl.StringVar(&provider, "provider", "", "github, gitlab or gitea (also for Forgejo); default by the address")
	fl.StringVar(&in.APIURL, "git-api", "", "base of the host's API, for a host of your own; default where such hosts have it")
	fl.StringVar(&in.User, "git-user", "", "who the token is of; most hosts do not ask")
	fl.StringVar(&tokenFile, "git-token-file", "", "file with a token of the host; - reads standard input")
	fl.StringVar(&in.HostKey, "host-key", "", "key of the ssh host, such as \"ssh-ed25519 AAAA…\"; default what it shows")
	fl.BoolVar(&in.Rotate, "rotate", false, "make a new webhook secret and a new deploy key")
	_ = cmd.RegisterFlagCompletionFunc("provider", cobra.FixedCompletions([]string{"github", "gitlab", "gitea"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagFilename("git-token-file")
	return cmd
}

// keep takes over what the user does not change.
func keep[T any](cmd *cobra.Command, flag string, to *T, known T) {
	if !cmd.Flags().Changed(flag) {
		*to = known
	}
}

// readSecret reads a secret from a file or from standard input, so that it is in no list of
// arguments; "" reads nothing.
func (a *app) readSecret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", leapcell.Errorf(leapcell.CodeInvalid, "the token cannot be read: %w", err)
		}
		defer f.Close()
		in = io.Reader(f)
	}
	text, err := readLimited(in, 64<<10)
	if err != nil {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "the token cannot be read: %w", err)
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "the token is empty")
	}
	return text, nil
}

func (a *app) gitShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show SERVICE", Short: "Show the repository that a service is connected with", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell git show shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			known, err := c.Connection(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.showConnection(c, args[0], client.Connected{Connection: known})
		},
	}
}

func (a *app) gitDeployCommand() *cobra.Command {
	var src leapcell.Source
	var detach bool
	cmd := &cobra.Command{
		Use: "deploy SERVICE", Short: "Deploy from the repository that a service is connected with", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell git deploy shop\n  leapcell git deploy shop --tag v1.2",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.DeployGit(cmd.Context(), args[0], src)
			if err != nil {
				return err
			}
			if detach {
				return a.show(d, []string{d.ID + ": follow it with `leapcell deployment log " + d.ID + " -f`"})
			}
			return a.follow(cmd.Context(), c, d)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&src.Branch, "branch", "", "another branch than the connected one")
	fl.StringVar(&src.Tag, "tag", "", "a tag")
	fl.StringVar(&src.Commit, "commit", "", "a commit, all 40 digits of it")
	fl.StringVar(&src.RootDir, "root-dir", "", "another folder than the connected one")
	fl.BoolVar(&detach, "detach", false, "do not wait for the deployment")
	return cmd
}

func (a *app) gitRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove SERVICE", Short: "End the connection of a service, with its previews, key and secret", Args: exactly(1, "SERVICE"),
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell git remove shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.Disconnect(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.show(map[string]string{"disconnected": args[0]}, []string{args[0] + " is not connected with a repository any more"})
		},
	}
}

func (a *app) showConnection(c *client.Client, service string, out client.Connected) error {
	known := out.Connection
	rows := [][]string{
		{"service", service}, {"repository", known.GitURL}, {"branch", known.Branch}, {"root directory", dash(known.RootDir)},
		{"previews", onOff(known.Previews)}, {"provider", string(known.Provider)}, {"API of the host", dash(known.APIURL)},
		{"token", map[bool]string{true: "kept in Vault", false: "-"}[known.HasToken]},
	}
	if known.PublicKey != "" {
		rows = append(rows, []string{"deploy key", known.PublicKey}, []string{"host key", known.HostKey})
	}
	rows = append(rows, []string{"webhook", c.Address() + known.HookPath})
	if out.Secret != "" {
		rows = append(rows, []string{"webhook secret", out.Secret})
	}
	if err := a.show(out, rows...); err != nil || out.Secret == "" || a.output == "json" {
		return err
	}
	fmt.Fprintln(a.err, "Set up the webhook at the repository's host: content type application/json, events push, delete and pull (merge) request.\nThe secret is not shown again.")
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
