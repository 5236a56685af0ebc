package deploy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
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
	settings, runtime, err := d.resolve(dep.Settings, tree.Settings, tree.Names)
	if err != nil {
		return err
	}
	source := build.Source{Runtime: runtime, Layer: layer, Repository: svc.ID + "/source", Tag: strconv.Itoa(dep.Number)}
	if _, err := d.cfg.Builder.SourceImage(ctx, source, say); err != nil {
		return err
	}
	_, err = d.move(ctx, w, leapcell.Building, func(dep *leapcell.Deployment) {
		dep.Settings, dep.Source.Commit = settings, tree.Commit
	})
	d.removeFiles(dep)
	return err
}

// resolve gives the settings that a deployment is built and run with: those of the API over
// those of the file over those of the runtime over the contract's.
func (d *Deployer) resolve(api, file leapcell.Settings, names map[string]bool) (leapcell.Settings, build.Runtime, error) {
	given := api.Over(file)
	var runtime build.Runtime
	var err error
	if given.Runtime == "" {
		runtime, err = d.cfg.Builder.Detect(names)
	} else {
		runtime, err = d.cfg.Builder.Runtime(given.Runtime)
	}
	if err != nil {
		return leapcell.Settings{}, runtime, err
	}
	out := given.Over(leapcell.Settings{
		Runtime: runtime.Name, BuildCommand: runtime.BuildCommand, StartCommand: runtime.StartCommand,
	}).Over(leapcell.DefaultSettings())
	if out.StartCommand == "" {
		return out, runtime, leapcell.Errorf(leapcell.CodeInvalid, "no start command is set: set startCommand in leapcell.yaml or in the service's settings")
	}
	return out, runtime, out.Validate()
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
