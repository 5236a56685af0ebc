package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// shot is one run of load on an address.
type shot struct {
	address string // host:port to connect to
	host    string // of the request
	path    string
	rate    int // requests a second, open loop; 0: as many as workers get answered
	workers int // with rate 0
	last    time.Duration
}

// hits is what came of it.
type hits struct {
	latencies []time.Duration
	rate      float64 // answered a second
}

// fire runs a shot. With a rate, requests leave by the clock, whether or not earlier ones
// were answered: a server that stalls does not slow its visitors down. Anything but a 200
// is an error.
func fire(ctx context.Context, s shot) (hits, error) {
	transport := &http.Transport{
		MaxIdleConnsPerHost: 2000,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.address)
		},
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	options := []func(*vegeta.Attacker){vegeta.Client(&http.Client{Transport: transport, Timeout: 30 * time.Second})}
	var pace vegeta.Pacer = vegeta.Rate{Freq: s.rate, Per: time.Second}
	if s.rate == 0 {
		options = append(options, vegeta.Workers(uint64(s.workers)), vegeta.MaxWorkers(uint64(s.workers)))
	}
	attacker := vegeta.NewAttacker(options...)
	target := vegeta.NewStaticTargeter(vegeta.Target{Method: http.MethodGet, URL: "http://" + s.host + s.path})
	defer context.AfterFunc(ctx, func() { attacker.Stop() })()
	var h hits
	begin := time.Now()
	for r := range attacker.Attack(target, pace, s.last, s.host) {
		if r.Code != http.StatusOK || r.Error != "" {
			attacker.Stop()
			return h, fmt.Errorf("%s%s answered %d %s", s.host, s.path, r.Code, r.Error)
		}
		h.latencies = append(h.latencies, r.Latency)
	}
	h.rate = float64(len(h.latencies)) / time.Since(begin).Seconds()
	return h, ctx.Err()
}
