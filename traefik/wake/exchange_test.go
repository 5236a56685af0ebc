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
