package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gonum.org/v1/plot/plotter"

	"github.com/leapcell/leapcell/test/harness"
)

// request is what a load sends next.
type request struct {
	service *harness.Service
	pause   time.Duration // of the app, between head and body of its answer
	bytes   int           // of the body
	upload  bool          // the body goes to the app, not from it
}

// visit is a request and what became of it.
type visit struct {
	request
	edge     string // the address it was sent to
	at, end  time.Time
	instance string // that answered
	status   int
	problem  string // empty: it got what it asked for
}

func (v visit) took() time.Duration { return v.end.Sub(v.at) }

func (v visit) String() string {
	what := "GET"
	if v.upload {
		what = "POST"
	}
	return fmt.Sprintf("%s %s of %d bytes with a pause of %s to %s at %s after %s: %d %s",
		v.at.Format("15:04:05.000"), what, v.bytes, v.pause, v.service.Name, v.edge, v.took().Round(time.Millisecond), v.status, v.problem)
}

// patience is how long a visitor waits; nothing that a load asks for takes as long.
const patience = 90 * time.Second

// load sends requests by the clock, whether or not earlier ones were answered: what stalls
// does not slow its visitors down. Nothing is sent twice.
type load struct {
	edges []string // a visitor takes one of them, and the next if nobody listens there
	rate  int      // a second
	last  time.Duration
	next  func(r *rand.Rand) request
	seed  uint64

	clients map[string]*http.Client
}

func (l *load) run(ctx context.Context) []visit {
	l.clients = map[string]*http.Client{}
	for _, edge := range l.edges {
		transport := &http.Transport{MaxIdleConnsPerHost: 500, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", edge)
			}}
		defer transport.CloseIdleConnections()
		l.clients[edge] = &http.Client{Transport: transport, Timeout: patience}
	}
	var mu sync.Mutex
	var visits []visit
	var all sync.WaitGroup
	random := rand.New(rand.NewPCG(l.seed, 1))
	begin := time.Now()
	for i := range int(l.last.Seconds() * float64(l.rate)) {
		select {
		case <-time.After(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(l.rate)))):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		v, first := visit{request: l.next(random)}, random.IntN(len(l.edges))
		all.Go(func() {
			l.visit(ctx, &v, first)
			mu.Lock()
			visits = append(visits, v)
			mu.Unlock()
		})
	}
	all.Wait()
	slices.SortFunc(visits, func(a, b visit) int { return a.at.Compare(b.at) })
	return visits
}

// visit sends one request to the first edge that can be dialled.
func (l *load) visit(ctx context.Context, v *visit, first int) {
	v.at = time.Now()
	defer func() { v.end = time.Now() }()
	for i := range l.edges {
		v.edge = l.edges[(first+i)%len(l.edges)]
		err := l.ask(ctx, v)
		if err == nil {
			v.problem = ""
			return
		}
		v.problem = err.Error()
		var dial *net.OpError
		if !errors.As(err, &dial) || dial.Op != "dial" {
			return
		}
	}
}

// ask sends it and reads the answer. A transport sends a GET again by itself when a kept
// connection breaks: here that counts as a failure.
func (l *load) ask(ctx context.Context, v *visit) error {
	var connections atomic.Int32
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connections.Add(1) }})
	method, url, body := http.MethodGet, fmt.Sprintf("http://%s/big?chunked=1&bytes=%d&pause=%d", v.service.Host, v.bytes, v.pause.Milliseconds()), io.Reader(nil)
	if v.upload {
		method, url, body = http.MethodPost, "http://"+v.service.Host+"/drain", onlyOnce{bytes.NewReader(filler[:v.bytes])}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if v.upload {
		req.ContentLength = int64(v.bytes)
	}
	resp, err := l.clients[v.edge].Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	v.status, v.instance = resp.StatusCode, resp.Header.Get("Probe-Instance")
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // for the message
		return fmt.Errorf("answered %s %q", resp.Status, strings.TrimSpace(string(text)))
	}
	n, said := int64(v.bytes), ""
	if v.upload {
		text, readErr := io.ReadAll(io.LimitReader(resp.Body, 300))
		said, err = string(text), readErr
		if err == nil && !strings.HasSuffix(said, fmt.Sprintf(" %d <nil>\n", v.bytes)) {
			err = fmt.Errorf("the app got %q", said)
		}
	} else {
		n, err = io.Copy(io.Discard, resp.Body)
	}
	switch {
	case err != nil:
		return fmt.Errorf("after %d bytes: %w", n, err)
	case n != int64(v.bytes):
		return fmt.Errorf("%d of %d bytes came", n, v.bytes)
	case connections.Load() > 1:
		return errors.New("the connection broke, and the client sent it again")
	}
	return nil
}

// onlyOnce hides that the body could be read again, so that nobody does.
type onlyOnce struct{ io.Reader }

var filler = bytes.Repeat([]byte("x"), largest)

// anySize is spread over magnitudes, small ones more often, as sizes on the web are.
func anySize(r *rand.Rand, most int) int {
	return int(smallest * math.Pow(float64(most)/smallest, math.Pow(r.Float64(), 2)))
}

// latencies of what was answered well.
func latencies(visits []visit) sums {
	samples := sums{}
	for _, v := range visits {
		if v.problem == "" {
			samples.add("total", v.took())
			samples.add("beyond the app's pause", max(0, v.took()-v.pause))
		}
	}
	return samples
}

func failures(visits []visit) []visit {
	return slices.DeleteFunc(slices.Clone(visits), func(v visit) bool { return v.problem == "" })
}

// event is something that happened on purpose.
type event struct {
	at, end time.Time
	what    string
}

// timeline draws a load second by second, with what happened meanwhile.
func timeline(title string, visits []visit, events []event) *chart {
	c := &chart{title: title, x: "seconds", y: "requests a second"}
	if len(visits) == 0 {
		return c
	}
	begin := visits[0].at
	answered, failed := map[int]float64{}, map[int]float64{}
	last := 0
	for _, v := range visits {
		second := int(v.end.Sub(begin).Seconds())
		last = max(last, second)
		if v.problem == "" {
			answered[second]++
		} else {
			failed[second]++
		}
	}
	line := func(counts map[int]float64) (points plotter.XYs) {
		for i := range last { // the last second is not a whole one
			points = append(points, plotter.XY{X: float64(i), Y: counts[i]})
		}
		return points
	}
	c.sets = []set{{name: "answered", points: line(answered)}, {name: "failed", points: line(failed)}}
	for _, e := range events {
		c.marks = append(c.marks, mark{e.at.Sub(begin).Seconds(), e.what})
	}
	return c
}
