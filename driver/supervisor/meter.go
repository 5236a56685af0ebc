package supervisor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/gate"
	"github.com/leapcell/leapcell/driver/meter"
)

// MeterAPI takes readings in.
type MeterAPI interface {
	// Report returns nil when the readings are counted for good. After an error they may or
	// may not be: they are sent again, which counts nothing twice.
	Report(ctx context.Context, meters []leapcell.Meter) error
}

const (
	meterInterval = 5 * time.Second        // between two reports of what changed
	meterPause    = 250 * time.Millisecond // many tasks may end at once: one report for all
	meterTimeout  = 10 * time.Second       // of one report
)

// meters takes what is counted on this node to the control plane, at least once. [BI3]
//
//	gate, build ──add──► page (mapped, on a tmpfs) ──read──► report ──acknowledged──► forgotten when ended
//	                                                           └── nobody takes it in: spool (on the disk)
//
// A page survives the end of any process, the spool a reboot too.
type meters struct {
	pages string
	spool string
	api   MeterAPI // nil: nowhere; figures are then in [TaskStats] only
	log   *slog.Logger
	ended chan struct{} // a task has

	delivering sync.Mutex // one report at a time
	mu         sync.Mutex
	known      map[string]*metered // by ID of the counters
	failing    bool                // the last report did not arrive
}

// metered is one task's counters on their way.
type metered struct {
	page    *meter.Page // nil: only last is known, from the spool
	last    leapcell.Meter
	taken   leapcell.Counters // what the control plane has
	ended   bool
	told    bool            // the control plane knows that it has ended
	spooled *leapcell.Meter // what the spool has; nil: nothing
}

func newMeters(o Options) *meters {
	return &meters{
		pages: filepath.Join(o.RunDir, "meters"), spool: o.MeterDir, api: o.MeterAPI, log: o.Log,
		ended: make(chan struct{}, 1), known: map[string]*metered{},
	}
}

// open gives the page of a task: the one that an earlier supervisor, or one that runs beside
// us, counts on, or a new one. If no file can be made, for example because memory is full, the
// task runs all the same: it is counted in this process's memory, and err says what that means.
func (m *meters) open(req StartRequest) (page *meter.Page, err error) {
	path := filepath.Join(m.pages, req.cellID())
	page, err = meter.Open(path)
	if err == nil {
		m.add(page)
		return page, nil
	}
	task := meter.Task{
		AllocID: req.AllocID, Name: req.Name, ServiceID: req.Config.ServiceID, Deployment: req.Config.Deployment,
		Mode: req.Config.Mode, MemoryMB: req.MemoryMB,
	}
	damaged := err
	if errors.Is(err, fs.ErrNotExist) {
		damaged = nil
	}
	if err = os.MkdirAll(m.pages, 0o700); err == nil {
		page, err = meter.Create(path, task)
	}
	if err != nil {
		page = meter.Memory(task)
		err = fmt.Errorf("the task is metered in memory only, and a crash of the supervisor would lose its figures: %w", err)
	}
	m.add(page)
	return page, errors.Join(damaged, err)
}

func (m *meters) add(page *meter.Page) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known[page.ID()] == nil {
		m.known[page.ID()] = &metered{page: page}
	}
}

// end says that a task has ended: its figures are delivered for the last time. alive says
// that it ran until now, so that its wall time may be brought up to date.
func (m *meters) end(page *meter.Page, alive bool) {
	if alive {
		page.Tick()
	}
	if err := page.End(); err != nil {
		m.log.Error("meter", "error", err)
	}
	m.mu.Lock()
	if k := m.known[page.ID()]; k != nil {
		k.ended, k.last = true, page.Read(time.Now())
	}
	m.mu.Unlock()
	select {
	case m.ended <- struct{}{}:
	default:
	}
}

// run delivers until ctx is done. It is called when all tasks of an earlier supervisor were
// taken over: a page that is nobody's then is of a task that ended with its supervisor.
func (m *meters) run(ctx context.Context) {
	m.collect()
	ticker := time.NewTicker(meterInterval)
	defer ticker.Stop()
	for {
		m.deliver(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-m.ended:
			select {
			case <-ctx.Done():
				return
			case <-time.After(meterPause):
			}
		}
	}
}

// close delivers what there is, or leaves it in the spool.
func (m *meters) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	m.deliver(ctx)
}

// collect finds the figures that earlier supervisors left: pages without a task, and readings
// in the spool.
func (m *meters) collect() {
	pages, errs := orphans(m.pages)
	m.mu.Lock()
	for _, p := range pages {
		if m.known[p.ID()] == nil {
			m.known[p.ID()] = &metered{page: p, ended: true, last: p.Read(time.Now())}
		}
	}
	m.mu.Unlock()
	readings, err := readSpool(m.spool)
	m.mu.Lock()
	for _, r := range readings {
		k := m.known[r.ID]
		if k == nil {
			r.Ended = true
			k = &metered{last: r, ended: true}
			m.known[r.ID] = k
		}
		k.spooled = &r
	}
	m.mu.Unlock()
	if err := errors.Join(errs, err); err != nil {
		m.log.Error("not all figures of earlier tasks could be read", "error", err)
	}
}

// orphans maps the pages in a folder.
func orphans(dir string) ([]*meter.Page, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*meter.Page
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasSuffix(path, ".new") { // half made
			errs = append(errs, os.Remove(path))
			continue
		}
		p, err := meter.Open(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// deliver reports what has changed.
func (m *meters) deliver(ctx context.Context) {
	m.delivering.Lock()
	defer m.delivering.Unlock()
	for batch := range slices.Chunk(m.changed(time.Now()), leapcell.MaxMeters) {
		err := m.report(ctx, batch)
		if err != nil {
			m.keep(batch)
		} else {
			m.settle(batch)
		}
		m.note(err)
	}
}

func (m *meters) report(ctx context.Context, batch []leapcell.Meter) error {
	ctx, cancel := context.WithTimeout(ctx, meterTimeout)
	defer cancel()
	return m.api.Report(ctx, batch)
}

// changed reads all counters and gives those that the control plane does not have. Ended tasks
// that have nothing to tell are forgotten; without a control plane, or without a service that
// they could be charged to, they all are.
func (m *meters) changed(now time.Time) []leapcell.Meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []leapcell.Meter
	for id, k := range m.known {
		if k.page != nil && !k.ended {
			k.page.Tick()
			k.last = k.page.Read(now)
		} else if k.page != nil {
			k.last.Counters = k.page.Counters() // an answer may have been on its way at the end
		}
		k.last.Ended = k.ended
		homeless := m.api == nil || k.last.ServiceID == ""
		news := k.last.Counters != k.taken
		known := k.told || k.taken == leapcell.Counters{}
		switch {
		case k.ended && (homeless || !news && known):
			m.forget(id, k)
		case !homeless && (news || k.ended):
			out = append(out, k.last)
		}
	}
	slices.SortFunc(out, func(a, b leapcell.Meter) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// settle notes what the control plane took in.
func (m *meters) settle(batch []leapcell.Meter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range batch {
		k := m.known[r.ID]
		k.taken, k.told = r.Counters, r.Ended
		switch {
		case r.Ended && (k.page == nil || k.page.Counters() == r.Counters):
			m.forget(r.ID, k)
		case k.spooled != nil:
			if err := os.Remove(m.spoolFile(r.ID)); err != nil {
				m.log.Error("meter", "error", err)
			}
			k.spooled = nil
		}
	}
}

// forget removes all that is left of a task's figures. The caller holds mu.
func (m *meters) forget(id string, k *metered) {
	var errs []error
	if k.page != nil {
		errs = append(errs, k.page.Remove())
	}
	if k.spooled != nil {
		errs = append(errs, os.Remove(m.spoolFile(id)))
	}
	delete(m.known, id)
	if err := errors.Join(errs...); err != nil {
		m.log.Error("figures that were delivered could not be removed: they will be delivered again, which counts nothing twice", "error", err)
	}
}

// keep writes readings that nobody took in to the disk. An ended task's page is not needed
// any more then.
func (m *meters) keep(batch []leapcell.Meter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range batch {
		k := m.known[r.ID]
		if k.spooled != nil && k.spooled.Counters == r.Counters && k.spooled.Ended == r.Ended {
			continue
		}
		if err := writeSpool(m.spoolFile(r.ID), r); err != nil {
			// The page stays, so that nothing is lost unless the machine goes down.
			m.log.Error("figures could not be written down", "error", err)
			return
		}
		k.spooled = &r
		if r.Ended && k.page != nil && k.page.Counters() == r.Counters {
			if err := k.page.Remove(); err != nil {
				m.log.Error("meter", "error", err)
			}
			k.page = nil
		}
	}
}

// note says once when figures begin to stay here, and when they are delivered again.
func (m *meters) note(err error) {
	m.mu.Lock()
	changed := m.failing != (err != nil)
	m.failing = err != nil
	waiting := len(m.known)
	m.mu.Unlock()
	switch {
	case changed && err != nil:
		m.log.Warn("figures cannot be delivered: they are kept here and sent again", "tasks", waiting, "error", err)
	case changed:
		m.log.Info("figures are delivered again")
	}
}

func (m *meters) spoolFile(id string) string { return filepath.Join(m.spool, id+".json") }

func writeSpool(file string, r leapcell.Meter) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return writeFile(file, b)
}

func readSpool(dir string) ([]leapcell.Meter, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []leapcell.Meter
	var errs []error
	for _, file := range files {
		var r leapcell.Meter
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err == nil && r.ID+".json" != filepath.Base(file) {
			err = fmt.Errorf("it is of %q", r.ID)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// spoolPages saves the figures of a node whose run folder is about to be removed.
func spoolPages(cfg Config) error {
	if cfg.APIAddr == "" {
		return nil
	}
	pages, err := orphans(filepath.Join(cfg.RunDir(), "meters"))
	errs := []error{err}
	for _, p := range pages {
		if r := p.Read(time.Now()); r.Counters != (leapcell.Counters{}) {
			errs = append(errs, writeSpool(cfg.path("meters", r.ID+".json"), r))
		}
	}
	return errors.Join(errs...)
}

// openMeter gives the task its counters.
func (t *task) openMeter() {
	page, err := t.sup.meters.open(t.req)
	t.page = page
	if err != nil {
		t.log.Error("meter", "error", err)
		t.event(nil, "%s", err)
	}
}

// closeMeter delivers the figures of a task that has ended. Answers that the gate was still
// giving are waited for: those who get them are in the figures.
func (t *task) closeMeter() {
	if t.page == nil {
		return
	}
	if t.gate != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = t.gate.Drain(ctx) // late ones are counted as long as the figures are not delivered
	}
	t.mu.Lock()
	alive := t.cell != nil
	t.mu.Unlock()
	t.sup.meters.end(t.page, alive)
}

// gateStats is the gate's state, with the figures of the page: those of this supervisor and
// of the ones before.
func (t *task) gateStats() gate.Stats {
	var s gate.Stats
	if t.gate != nil {
		s = t.gate.Stats()
	}
	if t.page != nil {
		c := t.page.Counters()
		s.Requests, s.ComputeMS, s.EgressBytes = c.Requests, c.ComputeMS, c.EgressBytes
	}
	return s
}

// meterClient is the control plane's API, as far as a node may call it.
type meterClient struct {
	url       string
	node      string
	tokenFile string
	http      *http.Client
}

func newMeterClient(cfg Config) (*meterClient, error) {
	node, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("the name of this machine: %w", err)
	}
	u, err := url.Parse(cfg.APIAddr)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("api_addr is %q: it must be like http://127.0.0.1:8400", cfg.APIAddr)
	}
	return &meterClient{
		url:  strings.TrimRight(cfg.APIAddr, "/") + "/v1/nodes/" + url.PathEscape(node) + "/meters",
		node: node, tokenFile: cfg.APIToken, http: &http.Client{},
	}, nil
}

// Report implements MeterAPI.
func (c *meterClient) Report(ctx context.Context, readings []leapcell.Meter) error {
	body, err := json.Marshal(leapcell.MeterReport{Node: c.node, Meters: readings})
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	if c.tokenFile != "" {
		token, err := os.ReadFile(c.tokenFile) // each time: it may be replaced, or come later than we
		if err != nil {
			return fmt.Errorf("api_token_file: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // for the log; also lets the connection be used again
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s answered %s: %s", c.url, res.Status, bytes.TrimSpace(text))
	}
	return nil
}
