package leapcell_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func goodMeter() leapcell.Meter {
	return leapcell.Meter{
		ID: strings.Repeat("0a", 16), AllocID: "a", Task: "t", ServiceID: "shop-main-abcdefgh", Deployment: "shop-1",
		Mode: leapcell.TaskServerless, MemoryMB: 256, At: time.Unix(1700000000, 0).UTC(),
		Counters: leapcell.Counters{Requests: 1, ComputeMS: 2, EgressBytes: 3, ColdStarts: 4, RunningMS: 5, BuildMS: 6},
	}
}

func TestMeterValidate(t *testing.T) {
	if err := goodMeter().Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*leapcell.Meter){
		"no id":         func(m *leapcell.Meter) { m.ID = "" },
		"upper-case id": func(m *leapcell.Meter) { m.ID = strings.Repeat("0A", 16) },
		"no service":    func(m *leapcell.Meter) { m.ServiceID = "" },
		"memory":        func(m *leapcell.Meter) { m.MemoryMB = -1 },
		"negative":      func(m *leapcell.Meter) { m.EgressBytes = -1 },
		"too large":     func(m *leapcell.Meter) { m.BuildMS = 1<<53 + 1 },
	} {
		m := goodMeter()
		spoil(&m)
		if err := m.Validate(); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMeterInJSON(t *testing.T) {
	b, err := json.Marshal(goodMeter())
	if err != nil {
		t.Fatal(err)
	}
	var back leapcell.Meter
	if err := json.Unmarshal(b, &back); err != nil || back != goodMeter() || !strings.Contains(string(b), `"computeMS":2`) {
		t.Errorf("%s became %+v, %v", b, back, err)
	}
}
