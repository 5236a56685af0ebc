package e2e

import (
	"bytes"
	"crypto/rand"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/githost"
	"github.com/leapcell/leapcell/test/harness"
)

// Of an app and of a site as many former deployments stay as the plan says, each with all of its image, and
// so does what is live; the images of older ones go, and what no other has of theirs. Nobody notices.
func TestOnlyWhatIsKeptStays(t *testing.T) {
	harness.Quick(t) // images are collected a minute after the last deployment
	p := harness.Get(t)
	p.Set(t, "leapcelld.plan=hobby", "leapcelld.images-kept=1", "leapcelld.collect-age=1s")
	app := p.Create(t, harness.Spec{})
	site := p.Create(t, harness.Spec{Settings: leapcell.Settings{Runtime: leapcell.RuntimeStatic}, Files: map[string]string{"index.html": ""}})
	var apps, sites []leapcell.Deployment
	has := map[string][]v1.Hash{} // what the images consist of, by deployment
	for _, answer := range []string{"one", "two", "three"} {
		blob := make([]byte, 1<<20)
		_, _ = rand.Read(blob)
		app.Change(map[string]string{"answer": answer, "blob": string(blob)})
		site.Change(map[string]string{"index.html": answer, "blob": string(blob)})
		apps, sites = append(apps, app.Deploy(t)), append(sites, site.Deploy(t))
		for _, d := range []leapcell.Deployment{apps[len(apps)-1], sites[len(sites)-1]} {
			if has[d.ID] = parts(t, d); len(has[d.ID]) < 2 {
				t.Fatalf("the image of %s consists of %v", d.ID, has[d.ID])
			}
		}
	}
	visitors := []*harness.Load{app.Visitors(t, 2, "/"), site.Visitors(t, 2, "/")}

	store := filepath.Join(p.Config.StateDir, "control", "registry")
	for _, d := range []leapcell.Deployment{apps[0], sites[0]} {
		harness.Eventually(t, 5*time.Minute, "the image of "+d.ID+" is given up", func() bool { return !p.Deployment(t, d.ID).HasImage() })
	}
	p.Probe(t, harness.Spec{}) // what they consisted of goes with the next collection, and that comes after a deployment
	for _, all := range [][]leapcell.Deployment{apps, sites} {
		alone := slices.DeleteFunc(has[all[0].ID], func(h v1.Hash) bool { return slices.Contains(has[all[1].ID], h) || slices.Contains(has[all[2].ID], h) })
		if len(alone) < 2 {
			t.Errorf("%s has only %v that others have not", all[0].ID, alone)
		}
		for _, h := range alone {
			harness.Eventually(t, 5*time.Minute, h.String()+" is gone from the disk", func() bool { return len(files(store, h.Hex)) == 0 })
		}
		for _, d := range all[1:] {
			if !p.Deployment(t, d.ID).HasImage() || !slices.Equal(parts(t, d), has[d.ID]) {
				t.Errorf("the image of %s is gone", d.ID)
			}
			for _, h := range has[d.ID] {
				layer, err := remote.Layer(image(t, d).Context().Digest(h.String()), login(t, p))
				must(t, err)
				if _, err := layer.Size(); err != nil {
					t.Errorf("of the image of %s: %v", d.ID, err)
				}
			}
		}
	}
	if _, _, err := p.Nomad.Jobs().Info(apps[0].ID, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("of the job of %s Nomad says: %v", apps[0].ID, err)
	}
	for _, load := range visitors {
		load.Check(t)
	}

	for _, s := range []*harness.Service{app, site} {
		if r := p.CLI(t, "rollback", s.Name, leapcell.JobID(s.Name, 1)); r.Code == 0 || !strings.Contains(r.Output, "is no longer kept: the plan hobby keeps those of the last 1 former deployments; `leapcell redeploy ") {
			t.Errorf("rolling back to the oldest: %d %s", r.Code, r.Output)
		}
		if out := p.Must(t, "deployments", s.Name); strings.Count(out, "not kept") != 1 {
			t.Errorf("one image should not be kept:\n%s", out)
		}
		p.Must(t, "rollback", s.Name)
	}
	app.ToZero(t)
	answers(t, app, "two")
	siteAnswers(t, site, "two")
	p.Must(t, "redeploy", app.Name, apps[0].ID) // as the refusal says
	answers(t, app, "one")
}

// image is where the registry has the image of a deployment.
func image(t *testing.T, d leapcell.Deployment) name.Digest {
	t.Helper()
	ref, err := name.NewDigest(d.Image, name.Insecure)
	must(t, err)
	return ref
}

// parts are what a deployment's image consists of: its own manifest, its configuration and its layers.
func parts(t *testing.T, d leapcell.Deployment) []v1.Hash {
	t.Helper()
	desc, err := remote.Get(image(t, d), login(t, harness.Get(t)))
	must(t, err)
	m, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
	must(t, err)
	out := []v1.Hash{m.Config.Digest}
	for _, l := range m.Layers {
		out = append(out, l.Digest)
	}
	return out
}

// A redeployment is made of the source and the settings that a former deployment had, whatever came
// since, and gets the variables of today.
func TestRedeploy(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	t.Run("upload", func(t *testing.T) {
		s := p.Create(t, harness.Spec{Extra: map[string]string{"answer": "one"}, Env: map[string]string{"GREETING": "then"}})
		first := s.Deploy(t)
		s.Change(map[string]string{"answer": "two"})
		s.Set(t, leapcell.Settings{BuildCommand: "echo other >> answer", MemoryMB: 512})
		s.SetEnv(t, map[string]string{"GREETING": "now"})
		second := s.Deploy(t)
		answers(t, s, "two"+"other\n")

		out := p.Must(t, "redeploy", s.Name, first.ID)
		if !strings.Contains(out, s.URL) {
			t.Errorf("the URL %s is not at the end of\n%s", s.URL, out)
		}
		third := redeployed(t, s, 3, first)
		answers(t, s, "one")
		var env map[string]string
		if s.Read(t, "/env", &env); env["GREETING"] != "now" {
			t.Errorf("the variable is %q", env["GREETING"])
		}
		if former := p.Deployment(t, second.ID); former.State != leapcell.Superseded {
			t.Errorf("%s is %s", second.ID, former.State)
		}
		p.Must(t, "redeploy", s.Name)
		redeployed(t, s, 4, third)
	})
	t.Run("git", func(t *testing.T) {
		s := p.Create(t, harness.Spec{Extra: map[string]string{"answer": "one"}})
		repo := githost.New(t).Repository("shop", s.Source())
		p.Must(t, "deploy", "--git", repo.URL, "--branch", "main", "--name", s.Name)
		first := p.Deployment(t, leapcell.JobID(s.Name, 1))
		repo.Commit("second", map[string]string{"answer": "two"})
		p.Must(t, "deploy", "--git", repo.URL, "--branch", "main", "--name", s.Name)
		answers(t, s, "two")
		p.Must(t, "redeploy", s.Name, first.ID)
		redeployed(t, s, 3, first)
		answers(t, s, "one")
	})
}

// redeployed checks that a deployment is live and is another one of the same as of.
func redeployed(t *testing.T, s *harness.Service, number int, of leapcell.Deployment) leapcell.Deployment {
	t.Helper()
	d := harness.Get(t).Deployment(t, leapcell.JobID(s.Name, number))
	if s.Reload(t); s.Live != d.ID || d.State != leapcell.Live || d.Trigger != leapcell.Redeploy || d.Of != of.ID {
		t.Errorf("%s is live; %s is %s by %s of %q", s.Live, d.ID, d.State, d.Trigger, d.Of)
	}
	if d.Source != of.Source || !reflect.DeepEqual(d.Settings, of.Settings) {
		t.Errorf("%s is made of %+v with %+v, and %s is of %+v with %+v", d.ID, d.Source, d.Settings, of.ID, of.Source, of.Settings)
	}
	return d
}
