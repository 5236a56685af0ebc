package deploy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
	"github.com/leapcell/leapcell/api/source"
)

// fetch reads the source, resolves the settings and pushes the source image. It is done
// again from its beginning after a restart.
func (d *Deployer) fetch(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	say := func(line string) { w.log.say("%s", line) }
	layer := d.layerPath(dep)
	if err := os.MkdirAll(filepath.Dir(layer), 0o700); err != nil {
		return fmt.Errorf("layers: %w", err)
	}
	tree, err := d.cfg.Sources.Fetch(ctx, dep.Source, layer, say)
	if err != nil {
		return err
	}
	say(fmt.Sprintf("source: %d files, %s", tree.Files, size(tree.Bytes)))
	settings, err := d.resolve(dep.Settings, tree, say)
	if err != nil {
		return err
	}
	runtime, err := d.builtOn(settings)
	if err != nil {
		return err
	}
	from := build.Source{Runtime: runtime, Layer: layer, Repository: svc.ID + "/" + sourceRepository, Tag: strconv.Itoa(dep.Number)}
	image, err := d.cfg.Builder.SourceImage(ctx, from, say)
	if err != nil {
		return err
	}
	if err := d.sign(ctx, image, w); err != nil {
		return err
	}
	d.prepare(image)
	_, err = d.move(ctx, w, leapcell.Building, func(dep *leapcell.Deployment) {
		dep.Settings, dep.Source.Commit = settings, tree.Commit
		dep.Author, dep.Subject = tree.Author, tree.Subject
	})
	d.removeFiles(dep)
	return err
}

// resolve gives the settings that a deployment is built and run with: those of the API over
// those of the file over those that the source shows over the contract's. What nobody set is
// said in the log.
func (d *Deployer) resolve(api leapcell.Settings, tree source.Tree, say func(string)) (leapcell.Settings, error) {
	given := api.Over(tree.Settings)
	because := "which is set"
	if given.Runtime == "" && given.Dockerfile != "" {
		given.Runtime, because = leapcell.RuntimeDocker, "because dockerfile is set"
	}
	if given.Runtime == "" {
		found, err := d.cfg.Builder.Detect(tree.Names)
		if err != nil {
			return given, err
		}
		given.Runtime, because = found.Runtime, "because there is a "+found.File
	}
	switch given.Runtime {
	case leapcell.RuntimeDocker:
		out, err := dockerSettings(given)
		if err == nil {
			say(fmt.Sprintf("runtime: docker, %s: %s says how it is built", because, out.Dockerfile))
		}
		return out, err
	case leapcell.RuntimeStatic:
		return resolveStatic(given, because, say)
	}
	runtime, err := d.cfg.Builder.Runtime(given.Runtime)
	if err != nil {
		return given, err
	}
	say(fmt.Sprintf("runtime: %s, %s", runtime, because))
	found := runtime.Defaults(tree.Heads).With(given.BuildCommand)
	if given.BuildCommand == "" {
		say("build command: " + orNone(found.Build) + ", as none is set")
	}
	if given.StartCommand == "" && found.Start != "" {
		say("start command: " + found.Start + ", as none is set" + inBrackets(found.Why))
	}
	out := given.Over(leapcell.Settings{BuildCommand: found.Build, StartCommand: found.Start}).Over(leapcell.DefaultSettings())
	if out.StartCommand == "" && !mayBeSite(out) {
		return out, leapcell.Errorf(leapcell.CodeInvalid, "no start command is set: set startCommand in leapcell.yaml or in the service's settings")
	}
	return out, out.Validate()
}

func orNone(command string) string {
	if command == "" {
		return "none"
	}
	return command
}

func inBrackets(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

func size(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d bytes", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KB", n>>10)
	}
	return fmt.Sprintf("%d MB", n>>20)
}
