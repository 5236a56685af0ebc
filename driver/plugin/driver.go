package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	cstructs "github.com/hashicorp/nomad/client/structs"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// handleVersion is that of [handleState].
const handleVersion = 1

// handleState is what Nomad keeps for us to recover a task: nothing, the supervisor knows it.
type handleState struct{ StartedAt time.Time }

// quick bounds questions that the supervisor answers from memory.
const quick = 10 * time.Second

// Driver implements drivers.DriverPlugin.
type Driver struct {
	log     hclog.Logger
	machine *machine
	exec    string // the program to start as supervisor

	launching sync.Mutex // one supervisor is started at a time
	postponed string     // why the last replacement did not take place; guarded by launching

	mu     sync.Mutex
	cfg    supervisor.Config
	client *supervisor.Client // nil until SetConfig
	mhz    float64            // of one core, as Nomad reckons
	known  map[string]bool    // tasks that Nomad has named, see orphans.go
	ending map[string]bool    // orphans that are being ended
}

// New makes a driver. program is started with "supervisor --config FILE" when the node has
// no supervisor: it is this program's own path.
func New(program string, log hclog.Logger) *Driver {
	return &Driver{exec: program, machine: newMachine(), log: log.Named(Name)}
}

var _ drivers.DriverPlugin = (*Driver)(nil)

// PluginInfo says who we are.
func (d *Driver) PluginInfo() (*base.PluginInfoResponse, error) { return info, nil }

// ConfigSchema is the schema of the plugin block.
func (d *Driver) ConfigSchema() (*hclspec.Spec, error) { return configSpec, nil }

// TaskConfigSchema is the schema of a task's config block.
func (d *Driver) TaskConfigSchema() (*hclspec.Spec, error) { return taskSpec, nil }

// Capabilities says what Nomad need not do.
func (d *Driver) Capabilities() (*drivers.Capabilities, error) { return capabilities, nil }

// SetConfig reads the plugin block and makes sure that the supervisor runs.
func (d *Driver) SetConfig(c *base.Config) error {
	if len(c.PluginConfig) == 0 {
		return nil // Nomad asks for the schema only
	}
	var cfg supervisor.Config
	if err := base.MsgPackDecode(c.PluginConfig, &cfg); err != nil {
		return fmt.Errorf("plugin config: %w", err)
	}
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return fmt.Errorf("plugin config: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cfg, d.client = cfg, supervisor.NewClient(cfg.Socket())
	if c := c.AgentConfig.Compute(); c.NumCores > 0 {
		d.mhz = float64(c.TotalCompute) / float64(c.NumCores)
	}
	return nil
}

// supervisor is the client without a question whether it answers: the hot path of a start.
func (d *Driver) supervisor() (*supervisor.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		return nil, errors.New("the driver has no configuration: the agent needs a block plugin \"nomad-driver-leapcell\" with state_dir")
	}
	return d.client, nil
}

// StartTask orders the supervisor to start the task. It returns when the gate accepts
// connections; the app starts meanwhile.
func (d *Driver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	req, err := request(cfg)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), quick)
	defer cancel()
	client, err := d.supervisor()
	if err != nil {
		return nil, nil, err
	}
	d.know(req.ID)
	status, err := client.Start(ctx, req)
	if isDown(err) {
		if client, err = d.up(ctx); err != nil {
			return nil, nil, structs.NewRecoverableError(fmt.Errorf("task was not started: %w", err), true)
		}
		status, err = client.Start(ctx, req)
	}
	if err != nil {
		return nil, nil, d.notStarted(req.ID, err)
	}
	handle := drivers.NewTaskHandle(handleVersion)
	handle.Config, handle.State = cfg, drivers.TaskStateRunning
	if err := handle.SetDriverState(handleState{StartedAt: status.StartedAt}); err != nil {
		return nil, nil, fmt.Errorf("task handle: %w", err)
	}
	return handle, nil, nil
}

// request translates Nomad's task.
func request(cfg *drivers.TaskConfig) (supervisor.StartRequest, error) {
	req := supervisor.StartRequest{
		ID: cfg.ID, Name: cfg.Name, AllocID: cfg.AllocID, Namespace: cfg.Namespace, Dir: cfg.AllocDir,
		Address: address(cfg), Env: environment(cfg.Env),
	}
	if err := cfg.DecodeDriverConfig(&req.Config); err != nil {
		return req, fmt.Errorf("task config: %w", err)
	}
	if req.Config.Port == 0 {
		req.Config.Port = port(cfg)
	}
	if req.Config.Service == "" {
		req.Config.Service = cfg.JobName
	}
	if req.Config.Deployment == "" {
		req.Config.Deployment = cfg.JobName
	}
	if r := cfg.Resources; r != nil && r.NomadResources != nil {
		req.MemoryMB = int(r.NomadResources.Memory.MemoryMB)
	}
	return req, nil
}

// address is where the gate listens: the port that Nomad allotted.
func address(cfg *drivers.TaskConfig) string {
	if r := cfg.Resources; r != nil && r.Ports != nil {
		for _, p := range *r.Ports {
			if p.Label == leapcell.PortLabel {
				return net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
			}
		}
	}
	return cfg.Env["NOMAD_HOST_ADDR_"+leapcell.PortLabel]
}

// port is where the app listens if its config does not say: the "to" of the port that Nomad
// allotted, or the contract's default.
func port(cfg *drivers.TaskConfig) int {
	if r := cfg.Resources; r != nil && r.Ports != nil {
		for _, p := range *r.Ports {
			if p.Label == leapcell.PortLabel && p.To > 0 {
				return p.To
			}
		}
	}
	return leapcell.DefaultPort
}

// environment is what the job's author wrote, without what Nomad adds: an instance sees nothing
// of the cluster. [ID5]
func environment(all map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range all {
		if !slices.ContainsFunc([]string{"NOMAD_", "VAULT_", "CONSUL_"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			out[name] = value
		}
	}
	return out
}

// RecoverTask checks that the supervisor still has the task.
func (d *Driver) RecoverTask(handle *drivers.TaskHandle) error {
	if handle == nil || handle.Config == nil {
		return errors.New("there is no task to recover")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*quick)
	defer cancel()
	d.know(handle.Config.ID)
	return notFound(d.ask(ctx, func(c *supervisor.Client) error {
		_, err := c.Inspect(ctx, handle.Config.ID)
		return err
	}))
}

// notFound is the error by which Nomad knows that a task is lost.
func notFound(err error) error {
	if errors.Is(err, supervisor.ErrNotFound) {
		return drivers.ErrTaskNotFound
	}
	return err
}

// WaitTask reports the task's end.
func (d *Driver) WaitTask(ctx context.Context, id string) (<-chan *drivers.ExitResult, error) {
	d.know(id)
	err := d.ask(ctx, func(c *supervisor.Client) error {
		_, err := c.Inspect(ctx, id)
		return err
	})
	if err != nil {
		return nil, notFound(err)
	}
	out := make(chan *drivers.ExitResult, 1)
	go func() {
		defer close(out)
		exit, err := d.wait(ctx, id)
		if ctx.Err() != nil {
			return
		}
		out <- result(exit, err)
	}()
	return out, nil
}

// wait asks on over a restart of the supervisor, which takes its tasks over.
func (d *Driver) wait(ctx context.Context, id string) (exit supervisor.Exit, err error) {
	return exit, d.ask(ctx, func(c *supervisor.Client) (err error) {
		exit, err = c.Wait(ctx, id)
		return err
	})
}

func result(exit supervisor.Exit, err error) *drivers.ExitResult {
	if err != nil {
		return &drivers.ExitResult{ExitCode: -1, Err: err}
	}
	r := &drivers.ExitResult{ExitCode: exit.Code, Signal: exit.Signal, OOMKilled: exit.OOM}
	if !r.Successful() && exit.Message != "" {
		r.Err = errors.New(exit.Message) // what the task's event shows
	}
	return r
}

// StopTask ends the task and returns when nothing is left of it. [LI3]
func (d *Driver) StopTask(id string, timeout time.Duration, signal string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout+leapcell.StopGrace+quick)
	defer cancel()
	end := time.Now().Add(timeout)
	return notFound(d.ask(ctx, func(c *supervisor.Client) error {
		return c.Stop(ctx, id, max(time.Until(end), time.Second), signal)
	}))
}

// DestroyTask forgets the task.
func (d *Driver) DestroyTask(id string, force bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), leapcell.StopGrace+quick)
	defer cancel()
	err := d.ask(ctx, func(c *supervisor.Client) error { return c.Destroy(ctx, id, force) })
	if err == nil || errors.Is(err, supervisor.ErrNotFound) {
		d.forget(id)
	}
	return notFound(err)
}

// InspectTask is the task as it is now.
func (d *Driver) InspectTask(id string) (*drivers.TaskStatus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), quick)
	defer cancel()
	var s supervisor.Status
	err := d.ask(ctx, func(c *supervisor.Client) (err error) {
		s, err = c.Inspect(ctx, id)
		return err
	})
	if err != nil {
		return nil, notFound(err)
	}
	out := &drivers.TaskStatus{
		ID: s.ID, Name: s.Name, State: drivers.TaskStateRunning, StartedAt: s.StartedAt, CompletedAt: s.CompletedAt,
		DriverAttributes: map[string]string{
			"pid": strconv.Itoa(s.PID), "state": string(s.State), "gate": s.Gate.State, "suspended": strconv.FormatBool(s.Gate.Suspended),
			"requests": strconv.FormatInt(s.Gate.Requests, 10), "compute_ms": strconv.FormatInt(s.Gate.ComputeMS, 10),
			"egress_bytes": strconv.FormatInt(s.Gate.EgressBytes, 10), "suspensions": strconv.FormatInt(s.Gate.Suspensions, 10),
		},
	}
	if s.State == supervisor.Exited {
		out.State, out.ExitResult = drivers.TaskStateExited, result(*s.Exit, nil)
	}
	return out, nil
}

// SignalTask sends a signal to the app.
func (d *Driver) SignalTask(id, signal string) error {
	client, err := d.supervisor()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), quick)
	defer cancel()
	return notFound(client.Signal(ctx, id, signal))
}

// TaskStats measures the task each interval.
func (d *Driver) TaskStats(ctx context.Context, id string, interval time.Duration) (<-chan *cstructs.TaskResourceUsage, error) {
	client, err := d.supervisor()
	if err != nil {
		return nil, err
	}
	d.know(id)
	out := make(chan *cstructs.TaskResourceUsage)
	go func() {
		defer close(out)
		meter := usage{mhz: d.coreMHz()}
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
				timer.Reset(interval)
			}
			stats, err := client.Stats(ctx, id)
			if errors.Is(err, supervisor.ErrNotFound) {
				return
			}
			if err != nil {
				d.log.Debug("no stats", "task_id", id, "error", err)
				continue
			}
			select {
			case out <- meter.of(stats):
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// TaskEvents passes on what the supervisor tells operators.
func (d *Driver) TaskEvents(ctx context.Context) (<-chan *drivers.TaskEvent, error) {
	out := make(chan *drivers.TaskEvent)
	go func() {
		defer close(out)
		last := int64(-1)
		for ctx.Err() == nil {
			events, next, err := d.events(ctx, last)
			if err != nil {
				pause(ctx, time.Second)
				continue
			}
			last = next
			for _, e := range events {
				event := &drivers.TaskEvent{
					TaskID: e.TaskID, TaskName: e.TaskName, AllocID: e.AllocID,
					Timestamp: e.Time, Message: e.Message, Annotations: e.Annotations,
				}
				select {
				case out <- event:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// events waits for the next ones; the first call finds out where the present is.
func (d *Driver) events(ctx context.Context, last int64) ([]supervisor.Event, int64, error) {
	client, err := d.supervisor()
	if err != nil {
		return nil, last, err
	}
	if last < 0 {
		h, err := client.Health(ctx)
		return nil, h.LastSeq, err
	}
	events, err := client.Events(ctx, last)
	if n := len(events); n > 0 {
		last = events[n-1].Seq
	}
	return events, last, err
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
