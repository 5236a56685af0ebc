package wake

import (
	"strconv"
	"strings"
	"time"
)

// Phases are those of a cold request, in order of time; together they are the time until the
// first byte of the answer:
//
//	queue     until somebody asked Nomad for an instance, and for a free slot of it
//	schedule  until the gate of the instance could be dialled
//	sandbox   until the gate had started the app (the gate's own clock)
//	app       until the app answered its probe (the gate's own clock)
//	proxy     the rest until the first byte of the answer
type Phases struct {
	Queue, Schedule, Sandbox, App, Proxy time.Duration
}

// coldPhases splits the time from arrival to firstByte of a request that waited for a
// start. A request that came late waited for a part of each phase only: what the gate says
// of the start is cut to the time this request was there.
func coldPhases(c *call, s *slot, gate gateTiming, firstByte time.Time) Phases {
	var p Phases
	asked, dialled := later(s.asked, c.arrived), later(s.dialled, c.arrived)
	if asked.After(dialled) { // the instance was there when this request came
		asked = dialled
	}
	p.Schedule = dialled.Sub(asked)
	given := later(s.given, c.arrived) // zero for a request that did not wait at the edge, but at the gate
	p.Queue = max(0, given.Sub(c.arrived)-p.Schedule)
	rest := max(0, firstByte.Sub(given))
	p.App = min(gate.app, rest)
	p.Sandbox = min(gate.sandbox, rest-p.App)
	p.Proxy = rest - p.App - p.Sandbox
	return p
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// String is the value of a Server-Timing header.
func (p Phases) String() string {
	b := make([]byte, 0, 96)
	add := func(name string, d time.Duration) {
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, name...)
		b = append(b, ";dur="...)
		b = strconv.AppendFloat(b, float64(d)/float64(time.Millisecond), 'f', 1, 64)
	}
	add("queue", p.Queue)
	add("schedule", p.Schedule)
	add("sandbox", p.Sandbox)
	add("app", p.App)
	add("proxy", p.Proxy)
	return string(b)
}

// gateTiming is what a gate says of the start of its instance.
type gateTiming struct {
	sandbox, app time.Duration
}

// parseTiming reads the gate's header: "sandbox=12.3,app=4.5" in milliseconds. What it does
// not understand it leaves at zero: a figure is not worth a failed request.
func parseTiming(value string) gateTiming {
	var t gateTiming
	for part := range strings.SplitSeq(value, ",") {
		name, number, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			continue
		}
		ms, err := strconv.ParseFloat(number, 64)
		const most = float64(time.Hour / time.Millisecond)
		if err != nil || !(ms >= 0 && ms <= most) { // also false for NaN
			continue
		}
		d := time.Duration(ms * float64(time.Millisecond))
		switch name {
		case "sandbox":
			t.sandbox = d
		case "app":
			t.app = d
		}
	}
	return t
}
