package edge

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
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

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

const (
	meterInterval = 5 * time.Second  // between two reports of what changed
	meterTimeout  = 10 * time.Second // of one report
	recordSize    = 256              // of a service's line in the file; lines never cross a page
)

// meters counts the requests that this edge answers with files, for which no gate does, and takes
// the figures to a control plane. [BI3]
//
//	answer ──Count──► line of the service in a file ──► report ──► taken in
//	                         └── of a killed edge: reported by the next one, then removed
//
// What is written to a file outlives the process at once. Readings are cumulative: one that is
// taken in twice counts once. (ADR 9)
type meters struct {
	dir  string // with a file for each process that counts or counted
	urls []string
	auth string
	http *http.Client
	log  *slog.Logger
	run  string // begins the IDs of all counters of this process

	mu       sync.Mutex
	file     *os.File // nil: in memory only
	services map[string]*metered
	lost     error           // why the file cannot be written
	failing  bool            // the last report did not arrive
	broken   map[string]bool // files that cannot be read, and that the log names
}

// metered is what was counted for a service. Its mutex is the meters'.
type metered struct {
	leapcell.Meter
	at    int64 // of its line in the file
	taken leapcell.Counters
}

// newMeters begins a file in dir. Without one, because dir is "" or the disk is full, it counts in
// memory: the log says what that means.
func newMeters(cfg Config, dir string) *meters {
	m := &meters{dir: dir, auth: "Bearer " + cfg.APIToken, http: &http.Client{Timeout: meterTimeout}, log: cfg.Log, services: map[string]*metered{}, broken: map[string]bool{}}
	var id [12]byte
	_, _ = rand.Read(id[:]) // never fails
	m.run = hex.EncodeToString(id[:])
	for _, api := range cfg.APIAddrs {
		m.urls = append(m.urls, api+"/v1/edges/"+url.PathEscape(cfg.ID)+"/meters")
	}
	if dir == "" || len(m.urls) == 0 {
		return m
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		m.file, err = os.OpenFile(filepath.Join(dir, m.run), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	}
	if err == nil { // it says that its process lives
		err = unix.Flock(int(m.file.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		m.log.Error("static requests are counted in memory only: a crash of this edge would lose some", "error", err)
	}
	return m
}

// Count adds what a service is charged for. It is called before the end of the answer is sent, so
// that what a visitor has is counted, whatever happens to this process.
func (m *meters) Count(service string, requests, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[service]
	if s == nil {
		n := len(m.services)
		s = &metered{at: int64(n) * recordSize, Meter: leapcell.Meter{
			ID: m.run + fmt.Sprintf("%08x", n), ServiceID: service, Mode: leapcell.TaskServerless,
		}}
		m.services[service] = s
	}
	s.Requests += requests
	s.EgressBytes += bytes
	m.write(s)
}

// write brings a service's line up to date. The caller holds mu.
func (m *meters) write(s *metered) {
	if m.file == nil {
		return
	}
	line := fmt.Appendf(make([]byte, 0, recordSize), "%s %s %d %d", s.ID, s.ServiceID, s.Requests, s.EgressBytes)
	err := errors.New("the service's ID is too long for a line")
	if len(line) < recordSize {
		line = append(line, bytes.Repeat([]byte{' '}, recordSize-1-len(line))...)
		_, err = m.file.WriteAt(append(line, '\n'), s.at)
	}
	if err != nil && m.lost == nil {
		m.log.Error("figures of static requests cannot be written: a crash of this edge would lose some", "error", err)
	} else if err == nil && m.lost != nil {
		m.log.Info("figures of static requests can be written again")
	}
	m.lost = err
}

// deliver reports until ctx ends, and once more then.
func (m *meters) deliver(ctx context.Context) {
	if len(m.urls) == 0 {
		return
	}
	ticker := time.NewTicker(meterInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			m.last(ctx)
			return
		case <-ticker.C:
			m.inherit(ctx)
			m.tell(ctx)
		}
	}
}

// tell reports what has changed, and says whether all of it was taken in.
func (m *meters) tell(ctx context.Context) bool {
	for batch := range slices.Chunk(m.changed(time.Now()), leapcell.MaxMeters) {
		if !m.report(ctx, batch) {
			return false
		}
		m.mu.Lock()
		for _, r := range batch {
			m.services[r.ServiceID].taken = r.Counters
		}
		m.mu.Unlock()
	}
	return true
}

// last tells the rest, and leaves the file to the next edge if nobody takes it in.
func (m *meters) last(ctx context.Context) {
	m.mu.Lock()
	for _, s := range m.services {
		s.Ended = true
	}
	m.mu.Unlock()
	done := m.tell(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return
	}
	if done {
		_ = os.Remove(m.file.Name()) // the next edge reports it once more otherwise
	}
	m.file.Close()
	m.file = nil
}

func (m *meters) changed(now time.Time) []leapcell.Meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []leapcell.Meter
	for _, s := range m.services {
		if s.Counters != s.taken || s.Ended {
			s.At = now
			out = append(out, s.Meter)
		}
	}
	return out
}

// inherit reports what edges counted that are no more, and removes their files when that is taken
// in.
func (m *meters) inherit(ctx context.Context) {
	if m.dir == "" {
		return
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Error("figures of earlier edges cannot be read", "error", err)
	}
	for _, e := range entries {
		if e.Name() != m.run {
			if err := m.inheritOne(ctx, filepath.Join(m.dir, e.Name())); err != nil && !m.broken[e.Name()] {
				m.broken[e.Name()] = true
				m.log.Error("figures of an earlier edge cannot be read", "error", err)
			}
		}
	}
}

func (m *meters) inheritOne(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // it still counts
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	readings, err := readMeters(f, info.ModTime())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for batch := range slices.Chunk(readings, leapcell.MaxMeters) {
		if !m.report(ctx, batch) {
			return nil // again next time
		}
	}
	return os.Remove(name)
}

// readMeters reads a file that no process writes any more. A line that was never whole counted
// nothing that anybody was told.
func readMeters(in io.Reader, at time.Time) ([]leapcell.Meter, error) {
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	var out []leapcell.Meter
	for line := range strings.Lines(string(b)) {
		m := leapcell.Meter{At: at, Ended: true, Mode: leapcell.TaskServerless}
		n, err := fmt.Sscanf(line, "%s %s %d %d", &m.ID, &m.ServiceID, &m.Requests, &m.EgressBytes)
		if err == nil && n == 4 && m.Validate() == nil {
			out = append(out, m)
		}
	}
	return out, nil
}

// report hands readings to the first control plane that takes them.
func (m *meters) report(ctx context.Context, batch []leapcell.Meter) bool {
	var err error
	for _, to := range m.urls {
		if err = m.post(ctx, to, batch); err == nil {
			break
		}
	}
	if err != nil && !m.failing {
		m.log.Warn("no control plane takes the figures of static requests; they are kept and tried again", "error", err)
	} else if err == nil && m.failing {
		m.log.Info("the figures of static requests are taken again")
	}
	m.failing = err != nil
	return err == nil
}

func (m *meters) post(ctx context.Context, to string, batch []leapcell.Meter) error {
	body, err := json.Marshal(leapcell.MeterReport{Meters: batch})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", m.auth)
	resp, err := m.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // for the log; also lets the connection be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answered %s: %s", to, resp.Status, bytes.TrimSpace(text))
	}
	return nil
}
