package cell

import (
	"slices"
	"testing"
	"time"
)

// report gives the median and the ninth decile of the samples.
func report(b *testing.B, name string, samples []time.Duration) {
	slices.Sort(samples)
	b.ReportMetric(float64(samples[len(samples)/2].Microseconds())/1000, name+"-p50-ms")
	b.ReportMetric(float64(samples[len(samples)*9/10].Microseconds())/1000, name+"-p90-ms")
}

// BenchmarkStart is from the call until the app's process exists, and until its first output.
func BenchmarkStart(b *testing.B) {
	for _, runtime := range Runtimes {
		b.Run(runtime, func(b *testing.B) { benchmarkStart(b, testLauncher(b, runtime)) })
	}
}

func benchmarkStart(b *testing.B, l Launcher) {
	var started, said, deleted []time.Duration
	for b.Loop() {
		c, out := testConfig(b, "graceful")
		from := time.Now()
		cell, err := l.Start(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		started = append(started, time.Since(from))
		line(b, out)
		said = append(said, time.Since(from))
		from = time.Now()
		if err := cell.Delete(); err != nil {
			b.Fatal(err)
		}
		deleted = append(deleted, time.Since(from))
	}
	report(b, "start", started)
	report(b, "output", said)
	report(b, "delete", deleted)
}

func BenchmarkFreezeThaw(b *testing.B) {
	c, out := testConfig(b, "graceful")
	cell := start(b, testLauncher(b, "runc"), c)
	line(b, out)
	var freeze, thaw []time.Duration
	for b.Loop() {
		from := time.Now()
		if err := cell.Freeze(); err != nil {
			b.Fatal(err)
		}
		freeze = append(freeze, time.Since(from))
		from = time.Now()
		if err := cell.Thaw(); err != nil {
			b.Fatal(err)
		}
		thaw = append(thaw, time.Since(from))
	}
	report(b, "freeze", freeze)
	report(b, "thaw", thaw)
}
