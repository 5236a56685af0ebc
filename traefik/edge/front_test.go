package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startFront runs Traefik before the handler; stop ends it.
func startFront(t testing.TB, cfg Config, h http.Handler, spans ...*traces) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen = l.Addr().String()
	l.Close()
	cfg.Log = slog.New(slog.DiscardHandler)
	front, err := newFront(cfg, h, append(spans, nil)[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { front.run(ctx); close(done) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return cfg.Listen, stop
}

func TestEverythingReachesTheHandler(t *testing.T) {
	dir := t.TempDir()
	address, _ := startFront(t, Config{DataDir: dir}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, r.RequestURI, " ", r.Header.Get("X-Forwarded-For"), " ", r.Header.Get("X-Forwarded-Proto"))
	}))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	for _, scheme := range []string{"http", "https"} {
		req, _ := http.NewRequest("GET", scheme+"://"+address+"/a//b/../c?d", nil)
		req.Host = "any.host"
		req.Header.Set("X-Forwarded-For", "forged")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got, want := string(b), "any.host/a//b/../c?d  "+scheme; got != want {
			t.Errorf("the handler saw %q, want %q", got, want)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "default.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key of the default certificate: %v, %v", info, err)
	}
}

func TestLongHeadersReachTheLimits(t *testing.T) {
	address, _ := startFront(t, Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(299)
	}))
	req, _ := http.NewRequest("GET", "http://"+address+"/"+strings.Repeat("a", 100<<10), nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 299 {
		t.Errorf("a line of 100 KB: %s, want the handler to see it", resp.Status)
	}
}

func TestStopWaitsForRequests(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	address, stop := startFront(t, Config{Drain: 10 * time.Second}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(inside)
		<-leave
	}))
	got := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + address)
		if err == nil {
			resp.Body.Close()
		}
		got <- err
	}()
	<-inside
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Error("stopped with a request in flight")
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	if err := <-got; err != nil {
		t.Error(err)
	}
	<-stopped
}
