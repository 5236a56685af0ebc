package cell

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// cpuPicker hands out cores so that cells with few cores do not all sit on the first one.
type cpuPicker struct {
	mu   sync.Mutex
	load map[int]int // core -> cells that see it
}

// pick takes n cores of allowed, the least used first; all of them when there are fewer.
func (p *cpuPicker) pick(allowed []int, n int) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	cpus := slices.Clone(allowed)
	slices.SortStableFunc(cpus, func(a, b int) int { return cmp.Compare(p.load[a], p.load[b]) })
	cpus = cpus[:min(max(n, 1), len(cpus))]
	slices.Sort(cpus)
	p.add(cpus, 1)
	return cpus
}

// use notes that an adopted cell has these cores.
func (p *cpuPicker) use(cpus []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(cpus, 1)
}

// release undoes pick and use.
func (p *cpuPicker) release(cpus []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(cpus, -1)
}

func (p *cpuPicker) add(cpus []int, n int) {
	if p.load == nil {
		p.load = make(map[int]int)
	}
	for _, c := range cpus {
		p.load[c] += n
	}
}

// parseCPUs reads the kernel's list form: "0-2,5".
func parseCPUs(s string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		if part == "" {
			continue
		}
		from, to, isRange := strings.Cut(part, "-")
		lo, err := strconv.Atoi(from)
		hi := lo
		if err == nil && isRange {
			hi, err = strconv.Atoi(to)
		}
		if err != nil || lo < 0 || hi < lo || hi > 1<<16 {
			return nil, fmt.Errorf("%q is not a list of CPUs", s)
		}
		for c := lo; c <= hi; c++ {
			cpus = append(cpus, c)
		}
	}
	return cpus, nil
}

// formatCPUs writes what parseCPUs reads.
func formatCPUs(cpus []int) string {
	parts := make([]string, len(cpus))
	for i, c := range cpus {
		parts[i] = strconv.Itoa(c)
	}
	return strings.Join(parts, ",")
}
