package main

import (
	"errors"
	"testing"
	"time"
)

func TestTimingReadsTheHeader(t *testing.T) {
	got := timing(`queue;dur=0.1, schedule;dur=7, sandbox;dur=21.5,app;dur=3.25, proxy;dur=0.4, cache;desc="no figure"`)
	for name, want := range map[string]time.Duration{
		"queue": 100 * time.Microsecond, "schedule": 7 * time.Millisecond, "sandbox": 21500 * time.Microsecond,
		"app": 3250 * time.Microsecond, "proxy": 400 * time.Microsecond,
	} {
		if got[name] != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
	if len(got) != 5 || len(timing("")) != 0 {
		t.Errorf("more was read than is there: %v, %v", got, timing(""))
	}
}

func TestSummaryOfSamples(t *testing.T) {
	s := sums{}
	for i := 100; i > 0; i-- {
		s.add("x", time.Duration(i)*time.Millisecond)
	}
	if got, want := s.summaries()["x"], (summary{100, 50, 90, 99, 100}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	s.add("one", time.Millisecond)
	if got, want := s.summaries()["one"], (summary{1, 1, 1, 1, 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A failure inside a session must end it, tidy up, and come out as an error.
func TestSessionTidiesUpWhenItFails(t *testing.T) {
	tidied := 0
	_, err := inSession(t.Context(), nil, 1, func(s *session) error {
		s.Cleanup(func() { tidied++ })
		s.Fatalf("wrong: %d", 7)
		return nil
	})
	if err == nil || err.Error() != "wrong: 7" || tidied != 1 {
		t.Errorf("%v, tidied %d times", err, tidied)
	}
	cause := errors.New("cause")
	if _, err := inSession(t.Context(), nil, 1, func(*session) error { return cause }); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}
