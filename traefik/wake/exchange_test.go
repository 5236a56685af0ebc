package wake

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// live is an edge and an app behind it on real sockets.
func live(t *testing.T, app http.HandlerFunc) (edge *httptest.Server, h *Handler, table *fakeTable) {
	t.Helper()
	gate := httptest.NewServer(app)
	table = newFakeTable(testRoute())
	table.set(gate.Listener.Addr().String())
	h = New(Config{Table: table, Scaler: &fakeScaler{}})
	edge = httptest.NewServer(h)
	t.Cleanup(func() { edge.Close(); h.Close(); gate.Close() })
	return edge, h, table
}

func send(t *testing.T, edge *httptest.Server, method, path string, body io.Reader, set func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, edge.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = testHost
	if set != nil {
		set(req)
	}
	resp, err := edge.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestBodiesAndTrailers(t *testing.T) {
	edge, h, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		w.Header().Set("X-Trailer", r.Trailer.Get("X-Up"))
		w.Write(b)
		w.Header().Set("X-Sum", fmt.Sprint(len(b)))
	})
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MB
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		resp, got := send(t, edge, method, "/", strings.NewReader(big), nil)
		want(t, method+" same body", got == big, true)
		want(t, method+" length", resp.Header.Get("X-Length"), fmt.Sprint(len(big)))
		want(t, method+" trailer", resp.Trailer.Get("X-Sum"), fmt.Sprint(len(big)))
	}
	resp, got := send(t, edge, "POST", "/", io.MultiReader(strings.NewReader("chun"), strings.NewReader("ked")), func(r *http.Request) {
		r.Trailer = http.Header{"X-Up": {"load"}}
	})
	want(t, "chunked", got, "chunked")
	want(t, "chunked length", resp.Header.Get("X-Length"), "-1")
	want(t, "request trailer", resp.Header.Get("X-Trailer"), "load")
	_, got = send(t, edge, "POST", "/", nil, nil)
	want(t, "empty", got, "")
	if c := h.Counters(); c.Broken != 0 || c.Requests != 6 {
		t.Errorf("counters %+v", c)
	}
}

func TestHeadAndNoContent(t *testing.T) {
	edge, _, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/204" {
			w.WriteHeader(204)
			return
		}
		w.Header().Set("Content-Length", "5")
		io.WriteString(w, "hello")
	})
	for range 2 { // the connection must stay usable
		resp, _ := send(t, edge, "HEAD", "/", nil, nil)
		want(t, "length", resp.ContentLength, 5)
		resp, _ = send(t, edge, "GET", "/204", nil, nil)
		want(t, "status", resp.StatusCode, 204)
		_, got := send(t, edge, "GET", "/", nil, nil)
		want(t, "body", got, "hello")
	}
}

// What the app has written reaches the visitor while the app goes on.
func TestAnswersStream(t *testing.T) {
	for _, known := range []bool{false, true} {
		next := make(chan struct{})
		edge, _, _ := live(t, func(w http.ResponseWriter, _ *http.Request) {
			if known {
				w.Header().Set("Content-Length", "3")
			}
			for range 3 {
				io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				<-next
			}
		})
		req, _ := http.NewRequestWithContext(t.Context(), "GET", edge.URL, nil)
		req.Host = testHost
		resp, err := edge.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		one := make([]byte, 1)
		for range 3 {
			if _, err := io.ReadFull(resp.Body, one); err != nil {
				t.Fatal(err)
			}
			next <- struct{}{}
		}
		resp.Body.Close()
	}
}

func TestEarlyHints(t *testing.T) {
	edge, _, _ := live(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		w.Header().Del("Link")
		io.WriteString(w, "done")
	})
	conn, err := net.Dial("tcp", edge.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", testHost)
	all, _ := io.ReadAll(conn)
	if !bytes.HasPrefix(all, []byte("HTTP/1.1 103")) || !bytes.Contains(all, []byte("Link: </a.css>")) || !bytes.HasSuffix(all, []byte("done")) {
		t.Errorf("got %q", all)
	}
}

func TestUpgrade(t *testing.T) {
	edge, h, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		want(t, "Upgrade at the app", r.Header.Get("Upgrade"), "echo")
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n" + leapcell.HeaderInstance + ": x\r\n\r\nhi ")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		rw.WriteString(line)
		rw.Flush()
	})
	conn, err := net.Dial("tcp", edge.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The first message comes together with the request.
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nyou\n", testHost)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "status", resp.StatusCode, 101)
	want(t, "platform header", resp.Header.Get(leapcell.HeaderInstance), "")
	rest, _ := io.ReadAll(br)
	want(t, "echo", string(rest), "hi you\n")
	waitFor(t, func() bool { return h.Load()[0].InFlight == 0 }, h.LoadChanged())
}

// waitFor waits until ok, looking again at each signal.
func waitFor(t *testing.T, ok func() bool, signal <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-signal:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
}

// An answer that comes before the body was sent is passed on, and the next request works.
func TestAnswerBeforeTheBody(t *testing.T) {
	edge, _, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			w.WriteHeader(413)
			return
		}
		io.WriteString(w, "ok")
	})
	for range 3 {
		resp, _ := send(t, edge, "POST", "/", strings.NewReader(strings.Repeat("x", 1<<20)), nil)
		want(t, "status", resp.StatusCode, 413)
		_, got := send(t, edge, "GET", "/", nil, nil)
		want(t, "next", got, "ok")
	}
}

// A gate that has closed a kept connection is dialled anew; the request is sent once.
func TestClosedIdleConnectionIsNoticed(t *testing.T) {
	var gate *httptest.Server
	seen := 0
	gate = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen++ }))
	defer gate.Close()
	table := newFakeTable(testRoute())
	table.set(gate.Listener.Addr().String())
	h := New(Config{Table: table, Scaler: &fakeScaler{}})
	defer h.Close()
	for range 5 {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, newRequest("POST", "/", ""))
		want(t, "status", rec.Code, 200)
		gate.CloseClientConnections()
	}
	want(t, "requests at the app", seen, 5)
}

func BenchmarkWarm(b *testing.B) {
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer gate.Close()
	table := newFakeTable(testRoute())
	table.set(gate.Listener.Addr().String())
	h := New(Config{Table: table, Scaler: &fakeScaler{}})
	defer h.Close()
	b.ReportAllocs()
	for b.Loop() {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, newRequest("GET", "/", ""))
		if rec.Code != 200 {
			b.Fatal(rec.Code)
		}
	}
}

// raw sends bytes to the edge and reads the first answer that is not an interim one.
func raw(t *testing.T, edge *httptest.Server, text string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", edge.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // a guard
	go io.WriteString(conn, text)
	in := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode >= 200 {
			return resp, string(b)
		}
	}
}

// The visitor's body is not over and no more of it comes: the answer does not wait for it,
// and nothing behind it is taken for a request.
func TestAnswerDoesNotWaitForTheBody(t *testing.T) {
	edge, h, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		r.Body.Read(make([]byte, 1))
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "no")
	})
	resp, body := raw(t, edge, "POST / HTTP/1.1\r\nHost: "+testHost+"\r\nContent-Length: 100000\r\n\r\nhalf")
	if resp.StatusCode != 403 || body != "no" || !resp.Close {
		t.Errorf("%s %q, close %v", resp.Status, body, resp.Close)
	}
	want(t, "broken", h.Counters().Broken, int64(0))
}

// A gate that has answered and hangs up does not cost the answer.
func TestAnswerSurvivesTheRestOfTheBody(t *testing.T) {
	r := newRig(t, testRoute())
	r.net.raw("gate", func(c net.Conn) {
		defer c.Close()
		in := bufio.NewReader(c)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		io.ReadFull(in, make([]byte, 1000))
		io.WriteString(c, "HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
	})
	r.table.set("gate")
	rec := r.do(newRequest("POST", "/", strings.Repeat("x", 1<<20)))
	if rec.Code != 413 || rec.Body.String() != "big" {
		t.Errorf("%d %q", rec.Code, rec.Body.String())
	}
	r.wantIdle(t)
}

func TestMalformedBody(t *testing.T) {
	edge, _, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			t.Error("the gate got a whole body")
		}
	})
	resp, _ := raw(t, edge, "POST / HTTP/1.1\r\nHost: "+testHost+"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n")
	if resp.StatusCode != 400 || !resp.Close {
		t.Errorf("%s, close %v", resp.Status, resp.Close)
	}
}

func TestDubiousFramingIsTheLast(t *testing.T) {
	edge, _, _ := live(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	for text, last := range map[string]bool{
		"POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n":         true,
		"POST / HTTP/1.0\r\nHost: %s\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello": true,
		"POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\n\r\nhello":                                                         false,
	} {
		resp, body := raw(t, edge, fmt.Sprintf(text, testHost))
		if resp.StatusCode != 200 || body != "hello" || resp.Close != last {
			t.Errorf("%q: %s %q, close %v", text, resp.Status, body, resp.Close)
		}
	}
}

// The gate learns whether it was the visitor who waits for 100 Continue.
func TestExpectIsToldApart(t *testing.T) {
	edge, _, _ := live(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Header.Get(leapcell.HeaderExpect), r.Header.Get("Expect"))
	})
	for header, told := range map[string]string{"": "100-continue", "Expect: 100-continue\r\n": "100-continue100-continue"} {
		_, body := raw(t, edge, "POST / HTTP/1.1\r\nHost: "+testHost+"\r\nContent-Length: 5\r\n"+header+"\r\nhello")
		want(t, "what the gate got after "+header, body, told)
	}
}

// What the edge adds does not count against the visitor's limits.
func TestLimitsAreTheVisitors(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = testHost
	left := leapcell.MaxHeadersBytes - len("Host: \r\n") - len(testHost)
	for i := 0; left > 0; i++ {
		size, name := min(left, 8<<10), fmt.Sprintf("X-%d", i)
		r.Header[name] = []string{strings.Repeat("x", size-len(name)-len(": \r\n"))}
		left -= size
	}
	r.Header["X-Forwarded-Server"] = []string{"edge"}
	r.Header["X-Real-Ip"] = []string{"192.0.2.1"}
	if no := checkLimits(r); no != nil {
		t.Errorf("64 KB: %+v", no)
	}
	r.Header["X"] = []string{""}
	if no := checkLimits(r); no != refuseHeaders {
		t.Errorf("64 KB and some bytes: %+v", no)
	}
}
