package plugin

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	pstructs "github.com/hashicorp/nomad/plugins/shared/structs"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// fingerprintEvery is how often Nomad is told how we are.
const fingerprintEvery = 10 * time.Second

// Fingerprint tells Nomad whether tasks can be started here, and if not, why.
func (d *Driver) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	out := make(chan *drivers.Fingerprint)
	begin := time.Now()
	go d.watch(ctx)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			if client, err := d.supervisor(); err == nil {
				d.endOrphans(ctx, client, time.Since(begin))
			}
			select {
			case out <- d.fingerprint(ctx):
			case <-ctx.Done():
				return
			}
			pause(ctx, fingerprintEvery)
		}
	}()
	return out, nil
}

func (d *Driver) fingerprint(ctx context.Context) *drivers.Fingerprint {
	d.mu.Lock()
	cfg, configured := d.cfg, d.client != nil
	d.mu.Unlock()
	if !configured {
		return &drivers.Fingerprint{Health: drivers.HealthStateUndetected, HealthDescription: "not configured: state_dir is missing"}
	}
	attributes := d.attributes(ctx, cfg)
	unhealthy := func(err error) *drivers.Fingerprint {
		text := strings.Join(strings.Split(err.Error(), "\n"), "; ")
		return &drivers.Fingerprint{Attributes: attributes, Health: drivers.HealthStateUnhealthy, HealthDescription: text}
	}
	if err := d.machine.missing(cfg); err != nil {
		return unhealthy(err)
	}
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	client, err := d.up(ctx)
	if err != nil {
		return unhealthy(err)
	}
	h, err := client.Health(ctx)
	if err != nil {
		return unhealthy(err)
	}
	attributes[attributePrefix+".supervisor_version"] = pstructs.NewStringAttribute(h.Version)
	description := drivers.DriverHealthy
	if cfg.Fallback != "" {
		description += "; sandboxes are made by " + cfg.Runtime + ": " + cfg.Fallback
	}
	return &drivers.Fingerprint{Attributes: attributes, Health: drivers.HealthStateHealthy, HealthDescription: description}
}

// attributePrefix begins the names of the node's attributes that jobs can make constraints of.
const attributePrefix = "driver." + Name

// attributes are what can be said of this node in any state.
func (d *Driver) attributes(ctx context.Context, cfg supervisor.Config) map[string]*pstructs.Attribute {
	out := map[string]*pstructs.Attribute{attributePrefix: pstructs.NewBoolAttribute(true)}
	cgroups, _ := d.machine.cgroups()
	for name, value := range map[string]string{
		"version": supervisor.Version, "name": cfg.Name,
		"runtime": cfg.Runtime, "runtime_version": d.machine.runtimeVersion(ctx, cfg.Runtime),
		"cgroups": cgroups, "kernel": kernel(),
	} {
		if value != "" {
			out[attributePrefix+"."+name] = pstructs.NewStringAttribute(value)
		}
	}
	return out
}
