package supply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

// What a build is, by its type. docs/deploying.md says what the parameters of each mean.
const (
	buildCommandType = "https://leapcell.dev/build/command/v1"
	dockerfileType   = "https://leapcell.dev/build/dockerfile/v1"
	importType       = "https://leapcell.dev/build/import/v1"
)

// statement is an in-toto statement, v1, with SLSA's provenance, v1.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     struct {
		BuildDefinition struct {
			BuildType            string         `json:"buildType"`
			ExternalParameters   map[string]any `json:"externalParameters"`
			InternalParameters   map[string]any `json:"internalParameters,omitempty"`
			ResolvedDependencies []resource     `json:"resolvedDependencies,omitempty"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID      string            `json:"id"`
				Version map[string]string `json:"version,omitempty"`
			} `json:"builder"`
			Metadata struct {
				InvocationID string    `json:"invocationId"`
				StartedOn    time.Time `json:"startedOn,omitzero"`
				FinishedOn   time.Time `json:"finishedOn,omitzero"`
			} `json:"metadata"`
			Byproducts []resource `json:"byproducts,omitempty"`
		} `json:"runDetails"`
	} `json:"predicate"`
}

// resource is in-toto's resource descriptor.
type resource struct {
	Name      string            `json:"name,omitempty"`
	URI       string            `json:"uri,omitempty"`
	Digest    map[string]string `json:"digest,omitempty"`
	MediaType string            `json:"mediaType,omitempty"`
}

// statement says of a deployment's image what is known, and leaves out the rest.
func (c *Chain) statement(ctx context.Context, dep leapcell.Deployment, bill []byte) ([]byte, error) {
	var s statement
	s.Type, s.PredicateType = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
	s.Subject = []resource{imageResource("", dep.Image)}
	def, run := &s.Predicate.BuildDefinition, &s.Predicate.RunDetails
	def.BuildType, def.ExternalParameters = parameters(dep)
	def.InternalParameters = map[string]any{"service": dep.Service, "serviceID": dep.ServiceID, "deployment": dep.ID}
	depends, err := c.dependencies(ctx, dep)
	if err != nil {
		return nil, err
	}
	def.ResolvedDependencies = depends
	run.Builder.ID, run.Builder.Version = c.cfg.Builder, map[string]string{"leapcelld": c.cfg.Version}
	run.Metadata.InvocationID = c.cfg.Builder + "/deployments/" + dep.ID
	run.Metadata.StartedOn, run.Metadata.FinishedOn = times(dep)
	sum := sha256.Sum256(bill)
	run.Byproducts = []resource{{Name: "bill of materials", MediaType: BillType, Digest: map[string]string{"sha256": hex.EncodeToString(sum[:])}}}
	return json.MarshalIndent(s, "", "  ")
}

// times are when somebody asked for the deployment and when its image was there, as far as that is known:
// of one that is live or was, the last change is not that of its build.
func times(dep leapcell.Deployment) (began, ended time.Time) {
	if began = dep.BuildBegan; began.IsZero() {
		began = dep.CreatedAt
	}
	if ended = dep.BuildEnded; ended.IsZero() && dep.State == leapcell.Starting && dep.LiveAt.IsZero() {
		ended = dep.UpdatedAt
	}
	return began.UTC(), ended.UTC()
}

// parameters are what somebody outside of the platform chose. Values of build arguments and of
// variables are not said, since they may be secrets.
func parameters(dep leapcell.Deployment) (kind string, out map[string]any) {
	set := dep.Settings
	out = map[string]any{"source": sourceParameters(dep.Source)}
	if dep.Trigger != "" {
		out["trigger"] = dep.Trigger
	}
	put := func(name, value string) {
		if value != "" {
			out[name] = value
		}
	}
	put("startCommand", set.StartCommand)
	if dep.Source.Image != "" {
		return importType, out
	}
	if len(set.BuildEnv) > 0 {
		out["buildEnv"] = set.BuildEnv
	}
	if set.Runtime == leapcell.RuntimeDocker {
		put("dockerfile", set.Dockerfile)
		if len(set.BuildArgs) > 0 {
			out["buildArgs"] = slices.Sorted(maps.Keys(set.BuildArgs))
		}
		return dockerfileType, out
	}
	put("runtime", set.Runtime)
	put("buildCommand", set.BuildCommand)
	return buildCommandType, out
}

func sourceParameters(src leapcell.Source) map[string]string {
	out := map[string]string{}
	for name, value := range map[string]string{
		"image": src.Image, "upload": src.Upload, "gitURL": src.GitURL, "branch": src.Branch, "tag": src.Tag, "commit": src.Commit, "rootDir": src.RootDir,
	} {
		if value != "" {
			out[name] = value
		}
	}
	return out
}

// dependencies are what went into the image, each with its digest: the source as it was given, the image
// that the build ran in, and what the result stands on.
func (c *Chain) dependencies(ctx context.Context, dep leapcell.Deployment) ([]resource, error) {
	src := dep.Source
	if src.Image != "" {
		_, digest, _ := strings.Cut(dep.Image, "@sha256:")
		return []resource{{Name: "image", URI: "docker://" + src.Image, Digest: map[string]string{"sha256": digest}}}, nil
	}
	var out []resource
	switch {
	case src.GitURL != "" && src.Commit != "":
		out = append(out, resource{Name: "source", URI: "git+" + src.GitURL, Digest: map[string]string{"gitCommit": src.Commit}})
	case src.Upload != "":
		out = append(out, resource{Name: "source", URI: "upload:" + src.Upload, Digest: map[string]string{"sha256": src.Upload}})
	}
	built, err := c.cfg.Registry.Resolve(ctx, dep.ServiceID+"/source", strconv.Itoa(dep.Number))
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return out, nil // of a deployment from before, whose source image has gone
	}
	if err != nil {
		return nil, err
	}
	out = append(out, imageResource("build image with the source", built))
	for _, of := range []struct{ name, image string }{{"base of the build image", built}, {"base of the image", dep.Image}} {
		base, err := c.base(ctx, of.image)
		if err != nil {
			return nil, err
		}
		if base != "" {
			out = append(out, resource{Name: of.name, Digest: map[string]string{"sha256": base}})
		}
	}
	return out, nil
}

// base is the digest of what an image stands on, "" if it does not say.
func (c *Chain) base(ctx context.Context, image string) (string, error) {
	img, err := c.cfg.Registry.At(ctx, image)
	if err != nil {
		return "", err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return "", fmt.Errorf("supply: manifest of %s: %w", image, err)
	}
	return strings.TrimPrefix(manifest.Annotations[leapcell.BaseDigestAnnotation], "sha256:"), nil
}

func imageResource(name, image string) resource {
	repository, digest, _ := strings.Cut(image, "@sha256:")
	if name == "" {
		name = repository
		return resource{Name: name, Digest: map[string]string{"sha256": digest}}
	}
	return resource{Name: name, URI: "docker://" + repository, Digest: map[string]string{"sha256": digest}}
}
