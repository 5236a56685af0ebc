package plugin

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	pstructs "github.com/hashicorp/nomad/plugins/shared/structs"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
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
	unhealthy := func(err error) *drivers.Fingerprint {
		return &drivers.Fingerprint{Health: drivers.HealthStateUnhealthy, HealthDescription: err.Error()}
	}
	if err := machine(cfg); err != nil {
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
	return &drivers.Fingerprint{
		Health: drivers.HealthStateHealthy, HealthDescription: drivers.DriverHealthy,
		Attributes: map[string]*pstructs.Attribute{
			"driver.leapcell":                    pstructs.NewBoolAttribute(true),
			"driver.leapcell.version":            pstructs.NewStringAttribute(supervisor.Version),
			"driver.leapcell.supervisor_version": pstructs.NewStringAttribute(h.Version),
			"driver.leapcell.runtime":            pstructs.NewStringAttribute(cfg.Runtime),
			"driver.leapcell.cgroups":            pstructs.NewStringAttribute(cgroupVersion()),
			"driver.leapcell.name":               pstructs.NewStringAttribute(cfg.Name),
		},
	}
}

// machine checks what a task needs of the machine; all that is missing is said at once.
func machine(cfg supervisor.Config) error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("the agent must run as root"))
	}
	if err := cell.Available(cfg.Runtime); err != nil {
		errs = append(errs, errors.New(leapcell.ErrorMessage(err)))
	}
	if b, err := os.ReadFile("/proc/filesystems"); err == nil && !strings.Contains(string(b), "\toverlay\n") {
		errs = append(errs, errors.New("the kernel has no overlay file system (modprobe overlay)"))
	}
	if cgroupVersion() == "" {
		errs = append(errs, errors.New("the cgroup controllers cpu, memory, pids and the freezer are not all there"))
	}
	return errors.Join(errs...)
}

// cgroupVersion is "v2", "v1", or "" when controllers are missing.
func cgroupVersion() string {
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		have := " " + strings.TrimSpace(string(b)) + " "
		for _, c := range []string{"cpu", "memory", "pids"} {
			if !strings.Contains(have, " "+c+" ") {
				return ""
			}
		}
		return "v2"
	}
	for _, c := range []string{"cpu", "memory", "pids", "freezer"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + c + "/cgroup.procs"); err != nil {
			return ""
		}
	}
	return "v1"
}
