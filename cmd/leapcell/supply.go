package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
)

func (a *app) sbomCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sbom SERVICE [DEPLOYMENT]", Short: "List the packages in the image of a service", Args: cobra.RangeArgs(1, 2),
		Long:              "List the packages in the image of a service: those of its live deployment, unless another is named. With -o json it is a CycloneDX document.",
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell sbom shop\n  leapcell sbom shop shop-3 -o json > shop.cdx.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.document(cmd.Context(), args, (*client.Client).Bill)
			if err != nil || a.output == "json" {
				return a.raw(text, err)
			}
			rows, err := billRows(text)
			if err != nil {
				return err
			}
			return a.table(rows...)
		},
	}
}

func (a *app) provenanceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "provenance SERVICE [DEPLOYMENT]", Short: "Say how the image of a service came about", Args: cobra.RangeArgs(1, 2),
		Long:              "Say of what, by whom and when the image of a service was built: that of its live deployment, unless another is named. With -o json it is an in-toto statement with SLSA provenance.",
		ValidArgsFunction: a.completeService,
		Example:           "  leapcell provenance shop\n  leapcell provenance shop shop-3 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.document(cmd.Context(), args, (*client.Client).Provenance)
			if err != nil || a.output == "json" {
				return a.raw(text, err)
			}
			rows, err := provenanceRows(text)
			if err != nil {
				return err
			}
			return a.table(rows...)
		},
	}
}

// document reads one of the deployment that args name: a service and perhaps a deployment of it.
func (a *app) document(ctx context.Context, args []string, read func(*client.Client, context.Context, string) ([]byte, error)) ([]byte, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	svc, err := c.Service(ctx, args[0])
	if err != nil {
		return nil, err
	}
	id := svc.Live
	if len(args) == 2 {
		d, err := c.Deployment(ctx, args[1])
		if err != nil {
			return nil, err
		}
		if d.ServiceID != svc.ID {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "the deployment %s is one of the service %s", d.ID, d.Service)
		}
		id = d.ID
	}
	if id == "" {
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "the service %s has no live deployment: name one", svc.Name)
	}
	return read(c, ctx, id)
}

// raw prints a document as it is.
func (a *app) raw(text []byte, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(a.out, strings.TrimSuffix(string(text), "\n"))
	}
	return err
}

// billRows shows what of a CycloneDX document fits into a table.
func billRows(text []byte) ([][]string, error) {
	var bill struct {
		Components []struct {
			Name, Version string
			PURL          string `json:"purl"`
			Licenses      []struct {
				License struct{ Name string }
			}
			Evidence struct {
				Occurrences []struct{ Location string }
			}
		}
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		return nil, fmt.Errorf("the bill of materials cannot be read: %w", err)
	}
	rows := [][]string{{"PACKAGE", "VERSION", "TYPE", "LICENCE", "FOUND IN"}}
	for _, c := range bill.Components {
		kind, _, _ := strings.Cut(strings.TrimPrefix(c.PURL, "pkg:"), "/")
		licence, place := "", ""
		if len(c.Licenses) > 0 {
			licence = c.Licenses[0].License.Name
		}
		if len(c.Evidence.Occurrences) > 0 {
			place = c.Evidence.Occurrences[0].Location
		}
		if kind == "" {
			kind = "system"
		}
		rows = append(rows, []string{c.Name, c.Version, kind, dash(licence), dash(place)})
	}
	return rows, nil
}

// provenanceRows shows what of an in-toto statement people ask for.
func provenanceRows(text []byte) ([][]string, error) {
	type resource struct {
		Name, URI string
		Digest    map[string]string
	}
	var s struct {
		Subject   []resource
		Predicate struct {
			BuildDefinition struct {
				BuildType            string
				ExternalParameters   map[string]any
				ResolvedDependencies []resource
			}
			RunDetails struct {
				Builder  struct{ ID string }
				Metadata struct{ StartedOn, FinishedOn time.Time }
			}
		}
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("the provenance cannot be read: %w", err)
	}
	line := func(r resource) string {
		var parts []string
		if r.URI != "" {
			parts = append(parts, r.URI)
		}
		for name, value := range r.Digest {
			parts = append(parts, name+":"+value)
		}
		return strings.Join(parts, " ")
	}
	var rows [][]string
	for _, r := range s.Subject {
		rows = append(rows, []string{"image", r.Name + "@" + line(resource{Digest: r.Digest})})
	}
	def, run := s.Predicate.BuildDefinition, s.Predicate.RunDetails
	rows = append(rows, []string{"built by", run.Builder.ID}, []string{"kind of build", def.BuildType})
	for _, t := range []struct {
		name string
		at   time.Time
	}{{"started", run.Metadata.StartedOn}, {"finished", run.Metadata.FinishedOn}} {
		if !t.at.IsZero() {
			rows = append(rows, []string{t.name, t.at.Local().Format(time.DateTime)})
		}
	}
	for _, r := range def.ResolvedDependencies {
		rows = append(rows, []string{r.Name, line(r)})
	}
	var names []string
	for name := range def.ExternalParameters {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if text, ok := def.ExternalParameters[name].(string); ok {
			rows = append(rows, []string{name, text})
		}
	}
	return rows, nil
}
