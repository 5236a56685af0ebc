package deploy

import (
	"context"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/leapcell/leapcell"
)

// fakeUpstream has one image.
type fakeUpstream struct {
	config v1.Config
	err    error
	copied []string
}

func (f *fakeUpstream) Check(ref string) error {
	if strings.Contains(ref, " ") {
		return leapcell.Errorf(leapcell.CodeInvalid, "no image")
	}
	return nil
}

func (f *fakeUpstream) Copy(_ context.Context, ref, repository, tag string, _ func(string)) (string, error) {
	f.copied = append(f.copied, ref+" "+repository+":"+tag)
	return "registry/" + repository + "@sha256:c0", f.err
}

func (f *fakeUpstream) Config(context.Context, string, string) (v1.Config, int64, error) {
	return f.config, 42, nil
}

func TestReadyImage(t *testing.T) {
	w := newWorld(t)
	up := &fakeUpstream{config: v1.Config{Cmd: []string{"/web"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}}}
	d := w.deployer(w.view(0, false), func(c *Config) { c.Upstream = up })
	if _, err := d.Submit(t.Context(), w.svc["shop-x"], leapcell.Source{Image: "not one"}, leapcell.Origin{}, nil); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("a bad reference: %v", err)
	}
	dep, err := d.Submit(t.Context(), w.svc["shop-x"], leapcell.Source{Image: "web:1"}, leapcell.Origin{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if dep, err = d.Wait(t.Context(), dep.ID); err != nil || dep.State != leapcell.Live {
		t.Fatalf("%s, %v, %+v", dep.State, err, dep.Error)
	}
	if dep.Settings.Port != 80 || dep.Settings.StartCommand != "" || dep.Settings.Runtime != leapcell.RuntimeImage || dep.ImageBytes != 42 || dep.Image == "" {
		t.Errorf("%+v, %d bytes at %s", dep.Settings, dep.ImageBytes, dep.Image)
	}
	if want := []string{"web:1 shop-x/app:1"}; !slices.Equal(up.copied, want) || w.builds != 0 {
		t.Errorf("copied %q, %d builds", up.copied, w.builds)
	}
}

func TestReadyImageThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), func(c *Config) {
		c.Upstream = &fakeUpstream{err: leapcell.Errorf(leapcell.CodeUnprocessable, "the image web:1 is not there")}
	})
	dep, err := d.Submit(t.Context(), w.svc["shop-x"], leapcell.Source{Image: "web:1"}, leapcell.Origin{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if dep, err = d.Wait(t.Context(), dep.ID); err != nil || dep.State != leapcell.Failed || dep.Error.Message != "the image web:1 is not there" {
		t.Errorf("%s, %v, %+v", dep.State, err, dep.Error)
	}
}

func TestImageObeysTheContract(t *testing.T) {
	exposes := func(ports ...string) v1.Config {
		c := v1.Config{Entrypoint: []string{"/run"}, ExposedPorts: map[string]struct{}{}}
		for _, p := range ports {
			c.ExposedPorts[p] = struct{}{}
		}
		return c
	}
	for name, c := range map[string]struct {
		given  leapcell.Settings
		config v1.Config
		port   int
		says   string
	}{
		"one port":       {leapcell.Settings{}, exposes("80/tcp", "53/udp"), 80, "port: 80"},
		"a port is set":  {leapcell.Settings{Port: 90}, exposes("80/tcp"), 90, "runs as user 1000"},
		"several ports":  {leapcell.Settings{}, exposes("443/tcp", "80"), leapcell.DefaultPort, "exposes the ports 80 443"},
		"no port":        {leapcell.Settings{}, exposes(), leapcell.DefaultPort, `start: ["/run"]`},
		"nonsense":       {leapcell.Settings{}, exposes("http", "-1", "70000"), leapcell.DefaultPort, ""},
		"its own health": {leapcell.Settings{}, v1.Config{Cmd: []string{"x"}, Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "true"}}}, leapcell.DefaultPort, "HEALTHCHECK is ignored"},
	} {
		var said []string
		got, err := obey(c.given, c.config, func(line string) { said = append(said, line) })
		if err != nil || got.Port != c.port || !strings.Contains(strings.Join(said, "\n"), c.says) {
			t.Errorf("%s: port %d, %v, says %q", name, got.Port, err, said)
		}
	}
	if _, err := obey(leapcell.Settings{}, v1.Config{}, func(string) {}); leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Errorf("an image that starts nothing: %v", err)
	}
	if _, err := obey(leapcell.Settings{StartCommand: "x"}, v1.Config{}, func(string) {}); err != nil {
		t.Errorf("with a start command: %v", err)
	}
}

func TestDockerfileStaysInItsFolder(t *testing.T) {
	for name, good := range map[string]bool{"": true, "Dockerfile.prod": true, "deploy/Dockerfile": true, "../Dockerfile": false, "/Dockerfile": false, "a/../../x": false} {
		out, err := dockerSettings(leapcell.Settings{Dockerfile: name})
		if (err == nil) != good || good && out.Dockerfile == "" {
			t.Errorf("%q: %q, %v", name, out.Dockerfile, err)
		}
	}
}
