package supervisor

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// record is what is written down about a task, so that the next supervisor can take it
// over. It holds no value of any variable.
type record struct {
	Request   StartRequest `json:"request"`
	PID       int          `json:"pid,omitempty"` // 0 until the app's process exists
	Netns     string       `json:"netns,omitempty"`
	StartedAt time.Time    `json:"startedAt,omitzero"`
	App       string       `json:"app,omitempty"` // address that answered the probe; "" until ready
	Stop      *stopOrder   `json:"stop,omitempty"`
	// StopSignal is what the image is asked to end with; "" is SIGTERM.
	StopSignal string    `json:"stopSignal,omitempty"`
	Exit       *Exit     `json:"exit,omitempty"`
	EndedAt    time.Time `json:"endedAt,omitzero"`
}

// stopOrder is a stop that was asked for: it does not end with the supervisor that got it.
type stopOrder struct {
	Until  time.Time `json:"until"`
	Signal int       `json:"signal,omitempty"`
}

// records is the folder of them.
type records struct{ dir string }

func (r records) file(cellID string) string { return filepath.Join(r.dir, cellID+".json") }

func (r records) save(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	return writeFile(r.file(rec.Request.cellID()), b)
}

func (r records) remove(cellID string) error {
	err := os.Remove(r.file(cellID))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// load reads all; a file that cannot be read is reported beside the others.
func (r records) load() ([]record, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []record
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var rec record
		if err := json.Unmarshal(b, &rec); err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, rec)
	}
	return out, errors.Join(errs...)
}
