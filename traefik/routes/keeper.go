package routes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// awakePrefix is where edges say that they have traffic for a job: one variable a group,
// with a time for each edge.
const awakePrefix = "leapcell/awake/"

// claimTries bounds how often a claim is made anew because another edge was faster.
const claimTries = 10

// Keeper puts plain jobs to sleep, in agreement with the other edges.
//
// Each edge with traffic for a job writes until when it wants it awake, and each edge that
// finds the job idle looks there first. What an edge has written expires by itself, so that
// one that is gone keeps nothing awake. Both writes check that nobody wrote in between.
type Keeper struct {
	cfg   Config
	table *Table
	edge  string
}

// NewKeeper makes a keeper for the edge of that name; no two edges may have the same one.
func NewKeeper(cfg Config, table *Table, edge string) *Keeper {
	return &Keeper{cfg: cfg, table: table, edge: edge}
}

// Routes are those of all plain jobs.
func (k *Keeper) Routes() []*leapcell.Route {
	var out []*leapcell.Route
	for _, p := range k.table.now.Load().parts {
		out = append(out, p.routes...)
	}
	return out
}

// Failing reports whether Nomad waits before it starts a failed instance again.
func (k *Keeper) Failing(deployment string) bool { return k.table.Restarting(deployment) }

// claims are the edges that want a job awake, with the time until when.
type claims map[string]time.Time

// Claim says to all edges that this one wants the job awake until then.
func (k *Keeper) Claim(ctx context.Context, route *leapcell.Route, until time.Time) error {
	for range claimTries {
		now, index, err := k.claims(ctx, route)
		if err != nil {
			return err
		}
		for edge, end := range now {
			if time.Now().After(end) {
				delete(now, edge)
			}
		}
		now[k.edge] = until
		done, err := k.write(ctx, route, now, index)
		if done || err != nil {
			return err
		}
	}
	return leapcell.Errorf(leapcell.CodeUnavailable, "the variable %s changes faster than it can be written", awakePath(route.Plain))
}

// Sleep sets the job's count to zero, unless another edge wants it awake: then it gives the
// time until when.
func (k *Keeper) Sleep(ctx context.Context, route *leapcell.Route) (until time.Time, err error) {
	now, index, err := k.claims(ctx, route)
	if err != nil {
		return time.Time{}, err
	}
	for edge, end := range now {
		if edge != k.edge && end.After(time.Now()) && end.After(until) {
			until = end
		}
	}
	if !until.IsZero() {
		return until, nil
	}
	// Written although there is nothing to say: should another edge claim the job in this
	// moment, one of the two writes is refused.
	done, err := k.write(ctx, route, claims{}, index)
	if err != nil {
		return time.Time{}, err
	}
	if !done {
		return time.Now().Add(time.Second), nil
	}
	return time.Time{}, scaleJob(ctx, k.cfg.Client, route, 0, "no request for "+time.Duration(route.DormantAfter).String())
}

// awakePath is the variable of a group. Jobs may have names that variables may not.
func awakePath(job *leapcell.PlainJob) string {
	name := job.Job + "/" + job.Group
	allowed := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '~'
	}
	plain := job.Job + job.Group
	if len(awakePrefix)+len(name) <= 128 && strings.IndexFunc(plain, func(r rune) bool { return !allowed(r) }) < 0 {
		return awakePrefix + name
	}
	sum := sha256.Sum256([]byte(name))
	return awakePrefix + hex.EncodeToString(sum[:16])
}

func (k *Keeper) claims(ctx context.Context, route *leapcell.Route) (claims, uint64, error) {
	got, _, err := k.cfg.Client.Variables().Peek(awakePath(route.Plain), (&api.QueryOptions{Namespace: route.Namespace}).WithContext(ctx))
	if err != nil {
		return nil, 0, k.denied(route, err)
	}
	out := claims{}
	if got == nil {
		return out, 0, nil
	}
	// What cannot be read is written anew: all edges renew what they claim.
	if json.Unmarshal([]byte(got.Items[leapcell.VariableItem]), &out) != nil || out == nil {
		out = claims{}
	}
	return out, got.ModifyIndex, nil
}

// write gives false when somebody else wrote since index.
func (k *Keeper) write(ctx context.Context, route *leapcell.Route, c claims, index uint64) (bool, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return false, fmt.Errorf("claims: %w", err)
	}
	_, _, err = k.cfg.Client.Variables().CheckedUpdate(&api.Variable{Path: awakePath(route.Plain), Namespace: route.Namespace,
		ModifyIndex: index, Items: api.VariableItems{leapcell.VariableItem: string(b)}},
		(&api.WriteOptions{Namespace: route.Namespace}).WithContext(ctx))
	var conflict api.ErrCASConflict
	if errors.As(err, &conflict) {
		return false, nil
	}
	if err != nil {
		return false, k.denied(route, err)
	}
	return true, nil
}

func (k *Keeper) denied(route *leapcell.Route, err error) error {
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "the edges cannot agree on the job "+route.Plain.Job+
		": the Nomad token must be allowed to read and write the variables "+awakePrefix+"* in the namespace "+route.Namespace)
}

// wakeJob brings a plain job to its count. One that has a count already is left alone: Nomad
// is about to place or restart its instances, and the count may be higher than ours.
func wakeJob(ctx context.Context, client *api.Client, route *leapcell.Route) error {
	status, _, err := client.Jobs().ScaleStatus(route.Plain.Job, (&api.QueryOptions{Namespace: route.Namespace}).WithContext(ctx))
	if err != nil {
		return jobError(route, err)
	}
	if group, ok := status.TaskGroups[route.Plain.Group]; ok && group.Desired > 0 {
		return nil
	}
	return scaleJob(ctx, client, route, route.Plain.Count, "a request waits for it")
}

func scaleJob(ctx context.Context, client *api.Client, route *leapcell.Route, count int, why string) error {
	_, _, err := client.Jobs().Scale(route.Plain.Job, route.Plain.Group, &count, why, false, nil,
		(&api.WriteOptions{Namespace: route.Namespace}).WithContext(ctx))
	return jobError(route, err)
}

func jobError(route *leapcell.Route, err error) error {
	var answer api.UnexpectedResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer) && answer.StatusCode() == http.StatusNotFound:
		return leapcell.Wrap(leapcell.CodeNotFound, err, "the job "+route.Plain.Job+" is not in Nomad's namespace "+route.Namespace)
	default:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "Nomad did not scale the group "+route.Plain.Group+" of the job "+route.Plain.Job)
	}
}
