package supervisor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

func (n *node) prefetchRequest() StartRequest {
	req := n.request(leapcell.TaskPrefetch)
	req.Address, req.Config.Command, req.Config.Port = "", "", 0
	return req
}

func TestPrefetch(t *testing.T) {
	n := newNode(t, hangs)
	req := n.prefetchRequest()
	n.start(req)
	if exit := n.wait(req); exit.Code != 0 || !strings.Contains(exit.Message, "the image is here") {
		t.Errorf("exit is %+v", exit)
	}
	if len(n.cells.cells) > 0 {
		t.Error("a prefetch has started something")
	}
	n.clean(req)
}

func TestPrefetchFails(t *testing.T) {
	n := newNode(t, hangs)
	n.images.pull = func(context.Context) error {
		return leapcell.Errorf(leapcell.CodeNotFound, "the image is not in its registry")
	}
	req := n.prefetchRequest()
	n.start(req)
	if exit := n.wait(req); exit.Code != 1 || exit.Message != "the image could not be pulled: the image is not in its registry" {
		t.Errorf("exit is %+v", exit)
	}
	n.clean(req)
}

// A deployment that failed takes its prefetch away.
func TestPrefetchStopped(t *testing.T) {
	n := newNode(t, hangs)
	began := make(chan struct{})
	n.images.pull = func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		return errors.Join(ctx.Err())
	}
	req := n.prefetchRequest()
	n.start(req)
	<-began
	if err := n.Stop(req.ID, time.Second, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := n.wait(req); exit.Message != "stopped" {
		t.Errorf("exit is %+v", exit)
	}
	n.clean(req)
}

func TestCollectSettings(t *testing.T) {
	tests := map[string]struct {
		set  Config
		want string // of the error; "" for none
	}{
		"defaults":      {Config{}, ""},
		"never":         {Config{ImageAge: "0", ImageHigh: 100}, ""},
		"low by itself": {Config{ImageHigh: 50}, ""},
		"no duration":   {Config{ImageAge: "a week"}, "image_gc_age"},
		"too young":     {Config{ImageAge: "1m"}, "image_gc_age"},
		"low over high": {Config{ImageHigh: 50, ImageLow: 60}, "image_gc_low_percent"},
		"over all":      {Config{ImageHigh: 101}, "image_gc_high_percent"},
		"under nothing": {Config{ImageHigh: 1}, "image_gc_low_percent"},
	}
	for what, tt := range tests {
		tt.set.StateDir = "/var/lib/leapcell"
		got, err := tt.set.WithDefaults()
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want one about %q", what, err, tt.want)
		}
		if err == nil && (got.ImageLow <= 0 || got.ImageLow >= got.ImageHigh) {
			t.Errorf("%s: marks are %d and %d", what, got.ImageLow, got.ImageHigh)
		}
	}
}
