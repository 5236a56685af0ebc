package deploy

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/leapcell/leapcell"
)

// Upstream knows images that were not made of a source here. Errors are for the owner.
type Upstream interface {
	// Check tells early whether ref can name an image at all.
	Check(ref string) error
	// Copy brings the image into the platform's registry and gives its reference with digest.
	Copy(ctx context.Context, ref, repository, tag string, progress func(string)) (string, error)
	// Config is how an image in the platform's registry is to be run, and its size.
	Config(ctx context.Context, repository, tag string) (v1.Config, int64, error)
}

// useImage takes a ready image for what it is: there is nothing to build. A copy of it in our own
// registry cannot vanish or change. It is done again from its beginning after a restart.
func (d *Deployer) useImage(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	say := func(line string) { w.log.say("%s", line) }
	image, err := patient(ctx, d, w, func(ctx context.Context) (string, error) {
		return d.cfg.Upstream.Copy(ctx, dep.Source.Image, svc.ID+"/"+appRepository, strconv.Itoa(dep.Number), say)
	})
	if err != nil {
		return err
	}
	given := dep.Settings
	given.Runtime = leapcell.RuntimeImage
	settings, bytes, err := d.adopt(ctx, svc, dep.Number, given, w)
	if err != nil {
		return err
	}
	_, err = d.move(ctx, w, leapcell.Starting, func(dep *leapcell.Deployment) {
		dep.Image, dep.Settings, dep.ImageBytes = image, settings, bytes
	})
	return err
}

// adopt makes the settings of a deployment that runs an image with a configuration of its own.
func (d *Deployer) adopt(ctx context.Context, svc leapcell.Service, number int, given leapcell.Settings, w *worker) (leapcell.Settings, int64, error) {
	type result struct {
		config v1.Config
		bytes  int64
	}
	got, err := patient(ctx, d, w, func(ctx context.Context) (r result, err error) {
		r.config, r.bytes, err = d.cfg.Upstream.Config(ctx, svc.ID+"/"+appRepository, strconv.Itoa(number))
		return r, err
	})
	if err != nil {
		return given, 0, err
	}
	settings, err := obey(given, got.config, func(line string) { w.log.say("%s", line) })
	return settings, got.bytes, err
}

// dockerSettings are those of a Dockerfile build; what is left open is for the image to say.
func dockerSettings(given leapcell.Settings) (leapcell.Settings, error) {
	given.Runtime = leapcell.RuntimeDocker
	if given.Dockerfile == "" {
		given.Dockerfile = "Dockerfile"
	}
	clean := path.Clean(given.Dockerfile)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
		return given, leapcell.Errorf(leapcell.CodeInvalid, "dockerfile is %q: it must be a file within the root directory", given.Dockerfile)
	}
	given.Dockerfile = clean
	return given, given.Validate()
}

// obey puts what an image says of itself into the terms of the runtime contract. Settings win; what
// the contract does not keep is said.
func obey(given leapcell.Settings, c v1.Config, say func(string)) (leapcell.Settings, error) {
	if given.StartCommand == "" {
		start := slices.Concat(c.Entrypoint, c.Cmd)
		if len(start) == 0 {
			return given, leapcell.Errorf(leapcell.CodeUnprocessable, "the image has neither ENTRYPOINT nor CMD: set a start command")
		}
		say("start: " + quoted(start) + ", as the image says")
	}
	if given.Port == 0 {
		given.Port = portOf(c, say)
	}
	switch user, _, _ := strings.Cut(c.User, ":"); user {
	case "", "0", "root":
		say(fmt.Sprintf("the image would run as root: it runs as user %d here", leapcell.InstanceUID))
	default:
		say("user: " + c.User + ", as the image says")
	}
	if c.Healthcheck != nil && len(c.Healthcheck.Test) > 0 && c.Healthcheck.Test[0] != "NONE" {
		say("HEALTHCHECK is ignored: the platform asks the app's port itself")
	}
	if len(c.Volumes) > 0 {
		say("VOLUME is ignored: what an instance writes ends with it")
	}
	out := given.Over(leapcell.DefaultSettings())
	return out, out.Validate()
}

// portOf is the one tcp port that the image exposes, else the contract's.
func portOf(c v1.Config, say func(string)) int {
	var ports []int
	for exposed := range c.ExposedPorts {
		number, protocol, _ := strings.Cut(exposed, "/")
		n, err := strconv.Atoi(number)
		if err == nil && n > 0 && n < 1<<16 && (protocol == "" || protocol == "tcp") {
			ports = append(ports, n)
		}
	}
	slices.Sort(ports)
	switch len(ports) {
	case 0:
		return leapcell.DefaultPort
	case 1:
		say(fmt.Sprintf("port: %d, as the image says", ports[0]))
		return ports[0]
	}
	port := leapcell.DefaultPort
	say(fmt.Sprintf("the image exposes the ports %s: port %d is used unless you set one", strings.Trim(fmt.Sprint(ports), "[]"), port))
	return port
}

// quoted shows a command as Dockerfiles write it.
func quoted(command []string) string {
	parts := make([]string, len(command))
	for i, p := range command {
		parts[i] = strconv.Quote(p)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}
