package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
)

// settingFlags are the settings of a service as flags.
type settingFlags struct {
	runtime, build, start, mode, memory                      string
	static, staticFallback, dockerfile                       string
	port, minInstances, maxInstances, concurrency            int
	startTimeout, requestTimeout, dormantAfter, scaleInDelay time.Duration
	ignorePaths, ignoreAgents, buildEnv, buildArgs           []string
}

func (f *settingFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.runtime, "runtime", "", "python, node, go or rust, with a version if it matters: python@3.11; default what the source shows")
	fl.StringVar(&f.build, "build", "", "build command, run by bash as root")
	fl.StringVar(&f.start, "start", "", "start command, run by bash")
	fl.IntVar(&f.port, "port", 0, "where the app listens; default 8080")
	fl.StringVar(&f.memory, "memory", "", "such as 512mb or 2gb; default 256mb")
	fl.StringVar(&f.mode, "mode", "", "serverless or persistent; default serverless")
	fl.IntVar(&f.minInstances, "min-instances", 0, "persistent: how many run; default 1")
	fl.IntVar(&f.maxInstances, "max-instances", 0, "at most so many; default 10")
	fl.IntVar(&f.concurrency, "concurrency", 0, "requests at a time in one instance; default 50")
	fl.DurationVar(&f.startTimeout, "start-timeout", 0, "how long the app may take until it listens; default 10s")
	fl.DurationVar(&f.requestTimeout, "request-timeout", 0, "how long one request may take; default 15m")
	fl.DurationVar(&f.dormantAfter, "dormant-after", 0, "without visits for so long it has no instances; default 30m")
	fl.DurationVar(&f.scaleInDelay, "scale-in-delay", 0, "how long an instance too many stays; default 1m")
	fl.StringSliceVar(&f.buildEnv, "build-env", nil, "names of the service's variables that builds see, such as NPM_TOKEN; hidden in the log, never in the image")
	fl.StringVar(&f.dockerfile, "dockerfile", "", "Dockerfile to build, within the root directory; default Dockerfile, where there is one")
	fl.StringArrayVar(&f.buildArgs, "build-arg", nil, "value of an ARG of the Dockerfile, as NAME=value; may be repeated. Images tell it: it is no place for secrets")
	fl.StringSliceVar(&f.ignorePaths, "ignore-paths", nil, "paths that the edge answers with 204 and that wake nothing, such as /healthz or /bots/*")
	fl.StringSliceVar(&f.ignoreAgents, "ignore-agents", nil, "the same for parts of a User-Agent, such as UptimeRobot")
	fl.StringVar(&f.static, "static", "", "folder with the files of a front end after the build, or none; default: it is recognised")
	fl.StringVar(&f.staticFallback, "static-fallback", "", "file of it for paths that are no files, such as index.html, or none")
	none := cobra.ShellCompDirectiveNoFileComp
	_ = cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{"python", "node", "go", "rust"}, none))
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"serverless", "persistent"}, none))
}

func (f *settingFlags) settings(*cobra.Command) (leapcell.Settings, error) {
	s := leapcell.Settings{
		Runtime: f.runtime, BuildCommand: f.build, StartCommand: f.start, Port: f.port, Mode: leapcell.Mode(f.mode),
		MinInstances: f.minInstances, MaxInstances: f.maxInstances, Concurrency: f.concurrency,
		StartTimeout: leapcell.Duration(f.startTimeout), RequestTimeout: leapcell.Duration(f.requestTimeout),
		DormantAfter: leapcell.Duration(f.dormantAfter), ScaleInDelay: leapcell.Duration(f.scaleInDelay),
		IgnorePaths: f.ignorePaths, IgnoreAgents: f.ignoreAgents, BuildEnv: f.buildEnv,
		Static: f.static, StaticFallback: f.staticFallback, Dockerfile: f.dockerfile,
	}
	var err error
	if s.BuildArgs, err = parseBuildArgs(f.buildArgs); err != nil {
		return s, err
	}
	if s.MemoryMB, err = parseMemory(f.memory); err != nil {
		return s, err
	}
	return s, s.Validate()
}

// parseBuildArgs reads NAME=value; nil when none are given.
func parseBuildArgs(given []string) (map[string]string, error) {
	if len(given) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(given))
	for _, one := range given {
		name, value, ok := strings.Cut(one, "=")
		if !ok {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "--build-arg %q has no value: write it as NAME=value", one)
		}
		if _, twice := out[name]; twice {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "--build-arg %s is given twice", name)
		}
		out[name] = value
	}
	return out, nil
}

// parseMemory reads 512, 512mb or 2gb as megabytes.
func parseMemory(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	number, factor := strings.ToLower(strings.TrimSpace(s)), 1
	for _, unit := range []struct {
		suffix string
		factor int
	}{{"mb", 1}, {"gb", 1024}, {"m", 1}, {"g", 1024}} {
		if n, ok := strings.CutSuffix(number, unit.suffix); ok {
			number, factor = strings.TrimSpace(n), unit.factor
			break
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 {
		return 0, leapcell.Errorf(leapcell.CodeInvalid, "the memory size %q cannot be read: write it as 512mb or 2gb", s)
	}
	return n * factor, nil
}

type deployFlags struct {
	settingFlags
	name    string
	git     string
	branch  string
	tag     string
	commit  string
	rootDir string
	image   string
	detach  bool
}

func (a *app) deployCommand() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use: "deploy [DIR]", Short: "Deploy a folder or a git repository; ends with the URL", Args: between(0, 1, "at most one DIR"),
		Long: `Deploys a folder (the current one unless named) or a git repository. The service is made if there is none of that name.
What .gitignore and .dockerignore leave out is not uploaded. Settings that are not given come from leapcell.yaml in the
source. The build log streams while it runs; the exit code is not 0 when the deployment fails.`,
		Example: `  leapcell deploy                       # this folder
  leapcell deploy examples/python --name shop --memory 512mb
  leapcell deploy --git https://example.com/team/shop.git --branch main --root-dir api
  leapcell deploy --image ghcr.io/team/shop:1.4 --name shop`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := ""
			if len(args) > 0 {
				dir = args[0]
			}
			settings, err := f.settings(cmd)
			if err != nil {
				return err
			}
			return a.deploy(cmd.Context(), dir, f, settings)
		},
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "of the service; default that of the folder or repository")
	fl.StringVar(&f.git, "git", "", "address of a git repository to deploy instead of a folder")
	fl.StringVar(&f.branch, "branch", "", "branch of --git; default that of the repository")
	fl.StringVar(&f.tag, "tag", "", "tag of --git")
	fl.StringVar(&f.commit, "commit", "", "commit of --git, all 40 digits of it")
	fl.StringVar(&f.rootDir, "root-dir", "", "folder within the source that is the app")
	fl.StringVar(&f.image, "image", "", "a ready image to deploy as it is, such as nginx:1.27")
	fl.BoolVar(&f.detach, "detach", false, "do not wait for the deployment")
	return cmd
}

func (a *app) deploy(ctx context.Context, dir string, f deployFlags, settings leapcell.Settings) error {
	if f.git != "" && dir != "" {
		return leapcell.Errorf(leapcell.CodeInvalid, "give a folder or --git, not both")
	}
	if f.git == "" && f.branch+f.tag+f.commit != "" {
		return leapcell.Errorf(leapcell.CodeInvalid, "--branch goes with --git, and so do --tag and --commit: a folder is deployed as it is")
	}
	if f.image != "" && (f.git != "" || dir != "" || f.rootDir != "") {
		return leapcell.Errorf(leapcell.CodeInvalid, "--image is deployed as it is: give no folder, --git or --root-dir with it")
	}
	if f.git == "" && f.image == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("the folder %q: %w", dir, err)
		}
		dir = abs
	}
	name := first(f.name, serviceNameOf(first(f.git, imageName(f.image), dir)))
	if err := leapcell.ValidateName(name); err != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "%w; --name gives it another", err)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	var archive *archive
	if f.git == "" && f.image == "" { // before the service is made: an empty folder makes none
		if archive, err = packTemp(dir); err != nil {
			return err
		}
		defer archive.remove()
	}
	service, err := ensureService(ctx, c, name, settings)
	if err != nil {
		return err
	}
	var d leapcell.Deployment
	switch {
	case f.image != "":
		d, err = c.DeployGit(ctx, service.ID, leapcell.Source{Image: f.image})
	case f.git != "":
		d, err = c.DeployGit(ctx, service.ID, leapcell.Source{GitURL: f.git, Branch: f.branch, Tag: f.tag, Commit: f.commit, RootDir: f.rootDir})
	default:
		fmt.Fprintf(a.err, "uploading %d files, %s packed\n", archive.Files, bytesText(archive.size))
		d, err = c.DeployUpload(ctx, service.ID, a.upload(archive, f.rootDir))
	}
	if err != nil {
		return err
	}
	if f.detach {
		return a.show(d, []string{d.ID + ": follow it with `leapcell deployment log " + d.ID + " -f`"})
	}
	return a.follow(ctx, c, d)
}

// progressEvery is how often an upload says how far it is.
const progressEvery = 2 * time.Second

// upload is what is sent of an archive, and told of it.
func (a *app) upload(ar *archive, rootDir string) client.Upload {
	var at int64 // the calls come one after another
	said := time.Now()
	begun := false
	return client.Upload{
		Archive: ar.file, Size: ar.size, RootDir: rootDir,
		Progress: func(sent int64) {
			at = sent
			if !begun && sent > 0 && sent < ar.size {
				fmt.Fprintf(a.err, "going on at %s, where the last upload ended\n", bytesText(sent))
			}
			begun = true
			if time.Since(said) >= progressEvery {
				said = time.Now()
				fmt.Fprintf(a.err, "uploaded %s of %s\n", bytesText(sent), bytesText(ar.size))
			}
		},
		Broken: func(err error) {
			fmt.Fprintf(a.err, "the upload was interrupted at %s, trying again: %s\n", bytesText(at), leapcell.ErrorMessage(err))
		},
	}
}

// imageName is the last part of a reference, without tag or digest.
func imageName(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	ref = ref[strings.LastIndex(ref, "/")+1:]
	ref, _, _ = strings.Cut(ref, ":")
	return ref
}

// ensureService finds the service, with these settings, or makes it.
func ensureService(ctx context.Context, c *client.Client, name string, settings leapcell.Settings) (leapcell.Service, error) {
	service, err := c.Service(ctx, name)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		service, err = c.CreateService(ctx, name, settings)
		if leapcell.ErrorCode(err) != leapcell.CodeConflict {
			return service, err
		}
		service, err = c.Service(ctx, name) // somebody else was faster
	}
	if err != nil || settings.IsZero() {
		return service, err
	}
	return c.UpdateService(ctx, service.ID, settings)
}

// archive is a packed folder in a temporary file: its size is known before it is sent.
type archive struct {
	packed
	file *os.File
	size int64
}

func packTemp(dir string) (*archive, error) {
	f, err := os.CreateTemp("", "leapcell-*.tar.gz")
	if err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	ar := &archive{file: f}
	if ar.packed, err = pack(dir, f); err == nil {
		if ar.size, err = f.Seek(0, io.SeekCurrent); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		ar.remove()
		return nil, err
	}
	return ar, nil
}

func (ar *archive) remove() {
	ar.file.Close()
	os.Remove(ar.file.Name()) // a temporary file: nothing depends on it
}

// follow shows the log of a deployment until it is done, and then how it ended. When the
// user leaves, the deployment goes on.
func (a *app) follow(ctx context.Context, c *client.Client, d leapcell.Deployment) error {
	log := a.out
	if a.output == "json" {
		log = a.err
	}
	if err := copyLog(ctx, c, d.ID, log, a.timestamps); err != nil && ctx.Err() == nil {
		fmt.Fprintf(a.err, "(the log is interrupted: %s)\n", leapcell.ErrorMessage(err)) // the outcome counts
	}
	done, err := c.Wait(ctx, d.ID)
	if ctx.Err() != nil {
		fmt.Fprintf(a.err, "\nThe deployment %[1]s goes on without you. Follow it with `leapcell deployment log %[1]s -f`, stop it with `leapcell deployment cancel %[1]s`.\n", d.ID)
		return &exitError{130}
	}
	if err != nil {
		return err
	}
	return a.finished(ctx, c, done)
}

// logOutage is how long the API may be away while a log is followed.
const logOutage = time.Minute

// copyLog follows the log to its end. After a break it goes on where it was.
func copyLog(ctx context.Context, c *client.Client, id string, w io.Writer, timestamps bool) error {
	o := leapcell.LogOptions{Follow: true, Timestamps: timestamps}
	lost := time.Time{}
	for {
		stream, err := c.DeploymentLog(ctx, id, o)
		if err == nil {
			var n int64
			n, err = io.Copy(w, stream)
			o.Offset += n
			if n > 0 {
				lost = time.Time{}
			}
			stream.Close()
			if err == nil {
				return nil
			}
		} else if leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
			return err
		}
		if lost.IsZero() {
			lost = time.Now()
		}
		if ctx.Err() != nil || time.Since(lost) > logOutage {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// finished shows how a deployment ended; a bad end is an error.
func (a *app) finished(ctx context.Context, c *client.Client, d leapcell.Deployment) error {
	service, err := c.Service(ctx, d.ServiceID)
	if err != nil {
		return err
	}
	if a.output == "json" {
		if err := a.json(map[string]any{"deployment": d, "service": service}); err != nil {
			return err
		}
	}
	if d.PreviewURL != "" {
		if a.output == "table" {
			fmt.Fprintf(a.out, "%s can be seen: %s\n", d.ID, d.PreviewURL)
		}
		return nil
	}
	if d.State == leapcell.Live {
		if a.output == "table" {
			fmt.Fprintf(a.out, "%s is live: %s\n", d.ID, service.URL)
		}
		return nil
	}
	return deploymentError(d)
}

// deploymentError is why a deployment is not live: its problem, with exit code and last lines.
func deploymentError(d leapcell.Deployment) error {
	if d.State == leapcell.Superseded && d.LiveAt.IsZero() {
		return leapcell.Errorf(leapcell.CodeConflict, "%s was overtaken by a newer deployment: see `leapcell deployments %s`", d.ID, d.Service)
	}
	if d.Error == nil {
		return leapcell.Errorf(leapcell.CodeConflict, "%s is %s, not live", d.ID, d.State)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s", d.ID, d.State, d.Error.Message)
	if code := d.Error.ExitCode; code != nil && !strings.Contains(d.Error.Message, strconv.Itoa(*code)) {
		fmt.Fprintf(&b, " (exit code %d)", *code)
	}
	if len(d.Error.LogTail) > 0 {
		b.WriteString("\nIts last lines:\n  " + strings.Join(d.Error.LogTail, "\n  "))
	}
	return &leapcell.Error{Code: d.Error.Code, Message: b.String()}
}

func bytesText(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
}

func readLimited(r io.Reader, most int64) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = errors.New("it is too long")
	}
	return string(b), err
}
