package e2e

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/signature"
	"github.com/leapcell/leapcell/test/harness"
)

// What is deployed is signed and described; an image that nobody has signed does not start.
func TestSupplyChain(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	service := harness.Name(t)
	p.Must(t, "deploy", filepath.Join(p.Root, "examples", "python"), "--name", service)
	s := named(t, service)
	visit(t, s)
	var dep leapcell.Deployment
	decode(t, p.CLI(t, "deployment", "show", s.Live, "-o", "json").Stdout, &dep)
	_, digest, _ := strings.Cut(dep.Image, "@")

	t.Run("Signed", func(t *testing.T) {
		text, err := os.ReadFile(p.Config.SigningKeysFile())
		if err != nil {
			t.Fatal(err)
		}
		keys, err := signature.ParseKeys(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Of(digest, signatures(t, p, dep.Image)); err != nil {
			t.Error(err)
		}
	})
	t.Run("Bill", func(t *testing.T) {
		var bill struct {
			Components []struct {
				PURL string `json:"purl"`
			}
		}
		decode(t, p.CLI(t, "sbom", service, "-o", "json").Stdout, &bill)
		var urls []string
		for _, c := range bill.Components {
			urls = append(urls, c.PURL)
		}
		if !slices.Contains(urls, "pkg:pypi/flask@3.1.1") || !slices.ContainsFunc(urls, func(u string) bool { return strings.HasPrefix(u, "pkg:deb/debian/libc6@") }) {
			t.Errorf("neither the app's nor the system's packages are all there:\n%s", strings.Join(urls, "\n"))
		}
		if r := p.CLI(t, "sbom", service, s.Live); r.Code != 0 || !strings.Contains(r.Stdout, "gunicorn") {
			t.Errorf("exit code %d:\n%s", r.Code, r.Output)
		}
	})
	t.Run("Provenance", func(t *testing.T) {
		var statement struct {
			Subject   []struct{ Digest map[string]string }
			Predicate struct {
				BuildDefinition struct {
					ResolvedDependencies []struct {
						Name   string
						Digest map[string]string
					}
				}
			}
		}
		decode(t, p.CLI(t, "provenance", service, "-o", "json").Stdout, &statement)
		if len(statement.Subject) != 1 || "sha256:"+statement.Subject[0].Digest["sha256"] != digest {
			t.Errorf("it is about %v, not %s", statement.Subject, digest)
		}
		known := map[string]string{}
		for _, d := range statement.Predicate.BuildDefinition.ResolvedDependencies {
			known[d.Name] = d.Digest["sha256"]
		}
		if known["source"] != dep.Source.Upload || len(known["base of the build image"]) != 64 || len(known["base of the image"]) != 64 {
			t.Errorf("made of %v", known)
		}
	})
	t.Run("UnsignedDoesNotStart", func(t *testing.T) { unsigned(t, p, s, dep) })
}

// unsigned puts an image into the registry past the control plane, and a job that runs it into Nomad.
func unsigned(t *testing.T, p *harness.Platform, s *harness.Service, dep leapcell.Deployment) {
	ref, err := name.NewDigest(dep.Image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, login(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/bin:/usr/bin", "EVIL=1"}, WorkingDir: "/app", Cmd: []string{"bash", "-c", "true"}}); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref.Context().Tag("evil"), img, login(t, p)); err != nil {
		t.Fatal(err)
	}
	hash, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	evil := ref.Context().Digest(hash.String()).String()

	job, _, err := p.Nomad.Jobs().Info(s.Live, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := s.Name + "-evil"
	job.ID, job.Name, job.Version = &id, &id, nil
	job.TaskGroups[0].Count = new(1)
	job.TaskGroups[0].Tasks[0].Config["image"] = evil
	if _, _, err := p.Nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = p.Nomad.Jobs().Deregister(id, true, nil) })
	harness.Eventually(t, 2*time.Minute, "the task says why it does not start", func() bool {
		allocs, _, err := p.Nomad.Jobs().Allocations(id, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range allocs {
			if saysUnsigned(a.TaskStates[s.ID], evil) {
				return true
			}
		}
		if ran := harness.Processes(func(p harness.Process) bool { return p.Env("EVIL") == "1" }); len(ran) > 0 {
			t.Fatalf("it runs: %v", ran)
		}
		return false
	})
	if left, err := filepath.Glob(filepath.Join(p.Config.NodeDir(), "images", "*", "*"+hash.Hex+"*")); err != nil || len(left) > 0 {
		t.Errorf("the node has %v, %v", left, err)
	}
}

func saysUnsigned(state *nomad.TaskState, image string) bool {
	return state != nil && slices.ContainsFunc(state.Events, func(e *nomad.TaskEvent) bool {
		return strings.Contains(e.DisplayMessage, "image not signed by ") && strings.Contains(e.DisplayMessage, image)
	})
}

func login(t *testing.T, p *harness.Platform) remote.Option {
	t.Helper()
	var cred struct{ Username, Password string }
	b, err := os.ReadFile(filepath.Join(p.Config.StateDir, "control", "registry.json"))
	if err != nil {
		t.Fatal(err)
	}
	decode(t, string(b), &cred)
	return remote.WithAuth(&authn.Basic{Username: cred.Username, Password: cred.Password})
}

// signatures reads them where cosign would.
func signatures(t *testing.T, p *harness.Platform, image string) (all []signature.Signed) {
	t.Helper()
	ref, err := name.NewDigest(image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref.Context().Tag(signature.Tag(ref.DigestStr())), login(t, p))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, desc := range manifest.Layers {
		sig, err := signature.Decode(desc.Annotations[signature.Annotation])
		if err != nil {
			t.Fatal(err)
		}
		layer, err := img.LayerByDigest(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		r, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, signature.Signed{Payload: text, Signature: sig})
	}
	return all
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}
