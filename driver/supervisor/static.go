package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/image"
	"github.com/leapcell/leapcell/driver/static"
	"github.com/leapcell/leapcell/internal/front"
)

// publishStatic looks for a front end in what the build left, and pushes it. whole says that
// there is nothing else: no image is needed.
func (t *task) publishStatic(ctx context.Context, img *image.Image, scratch string) (whole bool, exit *Exit) {
	if t.req.Config.StaticOutput == "" {
		return false, nil
	}
	t.event(map[string]string{leapcell.PhaseAnnotation: string(leapcell.Packaging)}, "looking for a front end")
	site, packed, err := t.packStatic(ctx, img, filepath.Join(scratch, "static"))
	if err != nil && (site == nil || site.Whole || t.req.Config.Static != "") {
		t.log.Error("front end could not be packed", "error", err)
		return false, &Exit{Code: 1, Message: describe(diskError(err))}
	}
	if err != nil { // the app serves its files itself, as it does elsewhere
		t.logs.say("front end: %s: its files are not taken out: %s", name(site), describe(diskError(err)))
		return false, nil
	}
	if packed == nil && t.req.Config.StartCommand == "" {
		return false, &Exit{Code: 1, Message: "there is no start command, and the build left no front end: set startCommand, or set static to the folder with the built files"}
	}
	if packed == nil {
		return false, nil
	}
	t.sayStatic(site, packed)
	if site.Whole { // else the image comes first
		t.phase(leapcell.Publishing, "publishing")
	}
	artifact, err := packed.Artifact()
	if err == nil {
		err = t.sup.images.Push(ctx, artifact, t.req.Config.StaticOutput)
	}
	if err != nil {
		t.log.Error("front end could not be published", "error", err)
		return false, &Exit{Code: 1, Message: "the front end could not be published: " + describe(diskError(err))}
	}
	if site.Whole {
		return true, &Exit{Message: "front end " + packed.Digest}
	}
	return false, nil
}

// packStatic gives nil if there is no front end. The tree is seen through the root of the image,
// which no link can leave: /app itself may be one by now.
func (t *task) packStatic(ctx context.Context, img *image.Image, dir string) (*front.Site, *static.Packed, error) {
	root, err := os.OpenRoot(t.path("rootfs"))
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	app, err := root.OpenRoot(strings.TrimPrefix(filepath.Clean("/"+img.WorkDir), "/"))
	if err != nil {
		return nil, nil, leapcell.Wrap(leapcell.CodeBuildFailed, err, "the folder "+img.WorkDir+" is not there after the build")
	}
	defer app.Close()
	c := t.req.Config
	site, err := front.Recognize(app.FS(), front.Options{Folder: c.Static, Fallback: c.StaticFallback, StartCommand: c.StartCommand})
	if err != nil || site == nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return site, nil, err
	}
	packed, err := static.Pack(ctx, app.FS(), site, dir)
	return site, packed, err
}

func name(site *front.Site) string {
	if site.Framework == "" {
		return "files"
	}
	return site.Framework
}

// sayStatic says what was recognised, and how to have it otherwise.
func (t *task) sayStatic(site *front.Site, p *static.Packed) {
	t.logs.say("==> front end")
	var at []string
	for _, m := range site.Mounts {
		folder := m.Folder
		if folder == "." {
			folder = "all files"
		}
		at = append(at, folder+" at "+m.Prefix)
	}
	t.logs.say("front end: %s, %s: %d files, %.1f MB", name(site), strings.Join(at, ", "), len(p.Manifest.Files), float64(p.Bytes)/1e6)
	for _, line := range p.LeftOut {
		t.logs.say("front end: left out: %s", line)
	}
	switch {
	case site.Whole && site.Fallback != "":
		t.logs.say("front end: the edge serves them all, and no instance is needed; other paths get %s", site.Fallback)
	case site.Whole:
		t.logs.say("front end: the edge serves them all, and no instance is needed; other paths get 404")
	default:
		t.logs.say("front end: the edge serves them; all other paths are the app's")
		if t.req.Config.StaticFallback != "" {
			t.logs.say("front end: staticFallback is not used: paths that are no files are the app's")
		}
	}
	t.logs.say("front end: to have it otherwise, set static in leapcell.yaml to a folder or to none%s", fallbackHint(site))
}

func fallbackHint(site *front.Site) string {
	if !site.Whole {
		return ""
	}
	return fmt.Sprintf(", and staticFallback to a file or to %s", front.None)
}
