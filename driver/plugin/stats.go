package plugin

import (
	"time"

	cstructs "github.com/hashicorp/nomad/client/structs"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// usage turns counters into rates: it remembers the last reading.
type usage struct {
	mhz float64 // of one core; 0 when Nomad does not know
	at  time.Time
	cpu uint64
}

func (u *usage) of(s supervisor.TaskStats) *cstructs.TaskResourceUsage {
	percent := 0.0
	if span := s.Time.Sub(u.at); !u.at.IsZero() && span > 0 && s.Cell.CPUNanos >= u.cpu {
		percent = float64(s.Cell.CPUNanos-u.cpu) / float64(span) * 100
	}
	u.at, u.cpu = s.Time, s.Cell.CPUNanos
	return &cstructs.TaskResourceUsage{
		Timestamp: s.Time.UnixNano(),
		ResourceUsage: &cstructs.ResourceUsage{
			MemoryStats: &cstructs.MemoryStats{
				RSS: s.Cell.Memory, Usage: s.Cell.Memory, MaxUsage: s.Cell.MaxMemory,
				Measured: []string{"RSS", "Usage", "Max Usage"},
			},
			CpuStats: &cstructs.CpuStats{
				Percent: percent, TotalTicks: percent / 100 * u.mhz, // what Nomad's UI draws
				ThrottledPeriods: s.Cell.Throttled, ThrottledTime: s.Cell.ThrottledNanos,
				Measured: []string{"Percent", "Throttled Periods", "Throttled Time"},
			},
		},
	}
}

func (d *Driver) coreMHz() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mhz
}
