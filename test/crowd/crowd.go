// Package crowd is a server for tests that counts how many calls it has at the same time.
package crowd

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// grace is how long the first ones wait for one too many.
const grace = 200 * time.Millisecond

// Server answers nobody until as many calls as full have come, and [grace] later: those who may
// call at the same time do, and those who may not would.
type Server struct {
	URL string

	full      int
	reached   chan struct{}
	answer    http.HandlerFunc
	mu        sync.Mutex
	now       int
	most, all int
}

// Start starts a server, and ends it with the test.
func Start(t testing.TB, full int, answer http.HandlerFunc) *Server {
	s := &Server{full: full, reached: make(chan struct{}), answer: answer}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// ServeHTTP counts a call, waits, and answers it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.all++
	s.now++
	if s.most = max(s.most, s.now); s.all == s.full {
		time.AfterFunc(grace, func() { close(s.reached) })
	}
	s.mu.Unlock()
	<-s.reached
	s.mu.Lock()
	s.now--
	s.mu.Unlock()
	s.answer(w, r)
}

// Check fails the test unless there were so many calls, and at the most full at the same time.
func (s *Server) Check(t testing.TB, calls int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.most != s.full || s.all != calls {
		t.Errorf("%d calls, up to %d at once; want %d and %d", s.all, s.most, calls, s.full)
	}
}
