package leapcell_test

import (
	"math"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestCPUQuotaIsMemoryShareOfACore(t *testing.T) {
	for _, c := range []struct {
		memoryMB int
		percent  float64 // of one core, as the contract prints it
	}{
		{128, 7.24}, {192, 10.85}, {256, 14.47}, {1769, 100}, {3538, 200}, {7076, 400},
	} {
		got := 100 * float64(leapcell.CPUQuota(c.memoryMB)) / float64(leapcell.CPUPeriod)
		if math.Abs(got-c.percent) > 0.01 {
			t.Errorf("%d MB: %.3f %% of a core, want %.2f", c.memoryMB, got, c.percent)
		}
	}
}

func TestCPUQuotaGrowsWithMemory(t *testing.T) {
	last := time.Duration(0)
	for m := leapcell.MinMemoryMB; m <= leapcell.MaxMemoryMB; m++ {
		q := leapcell.CPUQuota(m)
		if q <= last {
			t.Fatalf("%d MB has %v, %d MB had %v", m, q, m-1, last)
		}
		last = q
	}
}

func TestVisibleCores(t *testing.T) {
	for memoryMB, want := range map[int]int{
		128: 1, 1769: 1, 1770: 2, 3538: 2, 3539: 3, 5307: 3, 5308: 4, 7076: 4,
	} {
		if got := leapcell.VisibleCores(memoryMB); got != want {
			t.Errorf("%d MB: %d cores, want %d", memoryMB, got, want)
		}
	}
}

// An instance never gets more CPU than the cores it sees can give.
func TestQuotaFitsVisibleCores(t *testing.T) {
	for m := leapcell.MinMemoryMB; m <= leapcell.MaxMemoryMB; m++ {
		if limit := time.Duration(leapcell.VisibleCores(m)) * leapcell.CPUPeriod; leapcell.CPUQuota(m) > limit {
			t.Fatalf("%d MB: %v in a period, but its cores have %v", m, leapcell.CPUQuota(m), limit)
		}
	}
}

func TestTmpSize(t *testing.T) {
	for memoryMB, want := range map[int]int{128: 128, 512: 512, 513: 512, 7076: 512} {
		if got := leapcell.TmpSizeMB(memoryMB); got != want {
			t.Errorf("%d MB: /tmp of %d MB, want %d", memoryMB, got, want)
		}
	}
}

func TestPortNotListeningText(t *testing.T) {
	const want = "Port Some(9123) is not being listened to by the service"
	if got := leapcell.PortNotListeningText(9123); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
