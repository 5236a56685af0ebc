package contract

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_RQ1_LongRequestIsEnded(t *testing.T) {
	t.Parallel()
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) { checkLongRequest(t, mode) })
	}
}

func checkLongRequest(t *testing.T, mode leapcell.Mode) {
	beat := harness.Stretch(100*time.Millisecond, time.Second)
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{
		Mode: mode, MaxInstances: 1, RequestTimeout: leapcell.Duration(15 * beat),
	}})
	before := instanceOf(t, s)
	var wg sync.WaitGroup
	var other harness.Reply
	wg.Go(func() {
		// Begins while the long one waits, ends after it was ended.
		time.Sleep(7 * beat)
		other = s.Get(t, fmt.Sprintf("/sleep?ms=%d", (12*beat).Milliseconds()))
	})
	long := s.Get(t, fmt.Sprintf("/sleep?ms=%d", (200*beat).Milliseconds()))
	wg.Wait()
	if long.Status != http.StatusGatewayTimeout || !strings.HasPrefix(long.Body, "Request timed out after") {
		t.Errorf("the long request got %d %q", long.Status, long.Body)
	}
	if other.Status != http.StatusOK || other.Err != nil {
		t.Errorf("a shorter one beside it got %d %q %v", other.Status, other.Body, other.Err)
	}
	if after := instanceOf(t, s); after != before {
		t.Errorf("instance %s was replaced by %s", before, after)
	}
}

func TestMust_RQ1_TheContractsOwnText(t *testing.T) {
	if leapcell.RequestTimeout != 15*time.Minute || leapcell.TextRequestTimedOut != "Request timed out after 15 minutes" {
		t.Errorf("%s, %q", leapcell.RequestTimeout, leapcell.TextRequestTimedOut)
	}
}

func TestMust_RQ2_BigResponses(t *testing.T) {
	t.Parallel()
	const most = leapcell.MaxResponseBytes
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		for _, query := range []string{"", "&chunked=1"} {
			r := s.Get(t, fmt.Sprintf("/big?bytes=%d%s", most, query))
			if r.Status != http.StatusOK || r.Err != nil || len(r.Body) != most {
				t.Errorf("exactly the limit%s: %d, %d bytes, %v", query, r.Status, len(r.Body), r.Err)
			}
		}
		announced := s.Get(t, fmt.Sprintf("/big?bytes=%d", most+1))
		if mode == leapcell.Persistent {
			if announced.Status != http.StatusOK || announced.Err != nil || len(announced.Body) != most+1 {
				t.Errorf("persistent has no limit: %d, %d bytes, %v", announced.Status, len(announced.Body), announced.Err)
			}
		} else if announced.Status != http.StatusBadGateway || !strings.Contains(announced.Body, leapcell.TextResponseTooBig) {
			t.Errorf("one byte more, announced: %d %.100q", announced.Status, announced.Body)
		}
		for _, query := range []string{"", "&pause=200"} {
			r, err := s.Visit(t.Context(), harness.Get(t).HTTP, fmt.Sprintf("/big?bytes=%d&chunked=1%s", most+100_000, query))
			checkUnannounced(t, mode, r, err)
		}
	})
}

// checkUnannounced: a 502 if nothing had left yet, else a connection that breaks off, so that
// no visitor takes a part for the whole.
func checkUnannounced(t *testing.T, mode leapcell.Mode, r harness.Reply, err error) {
	t.Helper()
	whole := err == nil && r.Err == nil && r.Status == http.StatusOK
	if mode == leapcell.Persistent {
		if !whole || len(r.Body) != leapcell.MaxResponseBytes+100_000 {
			t.Errorf("persistent, not announced: %d, %d bytes, %v %v", r.Status, len(r.Body), r.Err, err)
		}
		return
	}
	if whole {
		t.Errorf("not announced: 200 and a body of %d bytes that looks whole", len(r.Body))
	}
	if r.Err == nil && err == nil && r.Status != http.StatusBadGateway {
		t.Errorf("not announced: %d %.100q", r.Status, r.Body)
	}
	if len(r.Body) > leapcell.MaxResponseBytes {
		t.Errorf("not announced: %d bytes came through", len(r.Body))
	}
}

// A response of serverless mode is passed on as it comes, not kept until it is whole.
func TestMust_RQ2_ResponsesAreStreamed(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Host+"/big?bytes=10&chunked=1&pause=3000", nil)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	resp, err := harness.Get(t).HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head := time.Since(begin)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the answer is %s", resp.Status)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	// The app sends its head 3 s before its body: the order is what is tested.
	if whole := time.Since(begin); whole-head < 2*time.Second {
		t.Errorf("the head came after %s, the body after %s: it was held back", head, whole)
	}
}
