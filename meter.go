package leapcell

import (
	"math"
	"regexp"
	"time"
)

// Counters is what a task is charged for. Each is counted on its own and only grows. [BI3]
type Counters struct {
	Requests    int64 `json:"requests"`    // answered, or given up by their visitor
	ComputeMS   int64 `json:"computeMS"`   // serverless: time with a request in flight, each span of it rounded up [BI1]
	EgressBytes int64 `json:"egressBytes"` // of response bodies and WebSockets
	ColdStarts  int64 `json:"coldStarts"`  // instances that were started and came to listen
	RunningMS   int64 `json:"runningMS"`   // persistent: wall time of the process [BI2]
	BuildMS     int64 `json:"buildMS"`     // wall time of a build, publishing included
}

// Plus is the sum of both.
func (c Counters) Plus(o Counters) Counters {
	return Counters{Requests: c.Requests + o.Requests, ComputeMS: c.ComputeMS + o.ComputeMS, EgressBytes: c.EgressBytes + o.EgressBytes,
		ColdStarts: c.ColdStarts + o.ColdStarts, RunningMS: c.RunningMS + o.RunningMS, BuildMS: c.BuildMS + o.BuildMS}
}

// Meter is one reading of a task's counters. Readings are cumulative, so that one that
// comes twice, late or never does no harm: the latest says all.
type Meter struct {
	ID         string    `json:"id"` // of the counters: 32 hexadecimal digits, never used again
	AllocID    string    `json:"allocID"`
	Task       string    `json:"task"`
	ServiceID  string    `json:"serviceID"`
	Deployment string    `json:"deployment"`
	Mode       TaskMode  `json:"mode"`
	MemoryMB   int       `json:"memoryMB"`
	At         time.Time `json:"at"`    // when it was read, by the node's clock
	Ended      bool      `json:"ended"` // the counters grow no more
	Counters
}

// MaxMeters is how many readings one report may have.
const MaxMeters = 1000

// MeterReport is what a node tells the control plane.
type MeterReport struct {
	Node   string  `json:"node"`
	Meters []Meter `json:"meters"`
}

var meterID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// maxCount is the largest number that JSON carries exactly.
const maxCount = 1 << 53

// Validate checks a reading before it is counted.
func (m Meter) Validate() error {
	if !meterID.MatchString(m.ID) {
		return Errorf(CodeInvalid, "the reading %q has no usable id: 32 hexadecimal digits are needed", m.ID)
	}
	if m.ServiceID == "" || m.MemoryMB < 0 || m.MemoryMB > math.MaxInt32 {
		return Errorf(CodeInvalid, "the reading %s needs a service and a memory size, it has %q and %d MB", m.ID, m.ServiceID, m.MemoryMB)
	}
	c := m.Counters
	for _, v := range []int64{c.Requests, c.ComputeMS, c.EgressBytes, c.ColdStarts, c.RunningMS, c.BuildMS} {
		if v < 0 || v > maxCount {
			return Errorf(CodeInvalid, "the reading %s has a counter of %d: it must be from 0 to %d", m.ID, v, int64(maxCount))
		}
	}
	return nil
}

// Usage is what a service used in one hour, or in all of them.
type Usage struct {
	Hour         time.Time `json:"hour,omitzero"` // its beginning, in UTC; not set in a total
	Requests     int64     `json:"requests"`
	ComputeMS    int64     `json:"computeMS"`
	GBSeconds    float64   `json:"gbSeconds"` // (compute + running) x memory; 1 GB is 1024 MB
	EgressBytes  int64     `json:"egressBytes"`
	BuildSeconds float64   `json:"buildSeconds"`
	ColdStarts   int64     `json:"coldStarts"`
	RunningMS    int64     `json:"runningMS"`
}

// ServiceUsage is the usage of one service between two points in time. Hours without usage
// are left out.
type ServiceUsage struct {
	ServiceID string    `json:"serviceID"`
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Hours     []Usage   `json:"hours"`
	Total     Usage     `json:"total"`
}
