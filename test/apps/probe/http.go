package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// protocols adds what shows how HTTP comes through.
func protocols(mux *http.ServeMux) {
	mux.HandleFunc("/drain", drain)
	mux.HandleFunc("/status", status)
	mux.HandleFunc("/headers", headers)
	mux.HandleFunc("/hints", hints)
	mux.HandleFunc("/trailers", trailers)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/duplex", duplex)
	mux.HandleFunc("/ws", webSocket)
	mux.HandleFunc("/raw", raw)
	mux.HandleFunc("/wait", wait)
	mux.HandleFunc("/gauge", gauge)
	mux.HandleFunc("/seen", seen)
}

// speak sets what versions of HTTP the app speaks, by PROBE_HTTP: 1 (default), 2 or both.
func speak(server *http.Server) {
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(os.Getenv("PROBE_HTTP") != "2")
	server.Protocols.SetUnencryptedHTTP2(os.Getenv("PROBE_HTTP") == "2" || os.Getenv("PROBE_HTTP") == "both")
}

// drain reads the body and says how long it was.
func drain(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	fmt.Fprintf(w, "%s %d %v\n", r.Proto, n, err)
}

// status answers with a code and without a look at the body.
func status(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", `"probe"`)
	w.WriteHeader(number(r, "code"))
}

// headers answers with as many bytes of headers as asked for, and with one of any name.
func headers(w http.ResponseWriter, r *http.Request) {
	for n := number(r, "bytes"); n > 0; n -= 1000 {
		w.Header().Add("X-Fill", strings.Repeat("x", min(n, 1000)-min(n, len("X-Fill: \r\n"))))
	}
	if name := r.FormValue("name"); name != "" {
		w.Header().Set(name, r.FormValue("value"))
	}
	fmt.Fprintln(w, "headers")
}

func hints(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Link", "</style.css>; rel=preload")
	w.WriteHeader(http.StatusEarlyHints)
	fmt.Fprintln(w, "hinted")
}

// trailers says which ones came, and sends one.
func trailers(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Trailer", "X-Sum")
	_ = json.NewEncoder(w).Encode(r.Trailer)
	w.Header().Set("X-Sum", "42")
}

// events is a stream of them, each as it happens.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range number(r, "n") {
		fmt.Fprintf(w, "data: %d\n\n", i)
		w.(http.Flusher).Flush()
		time.Sleep(time.Duration(number(r, "ms")) * time.Millisecond)
	}
}

// duplex answers each line before it reads the next.
func duplex(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	_ = rc.Flush()
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		fmt.Fprintln(w, "re:", lines.Text())
		_ = rc.Flush()
	}
}

// webSocket does the handshake of RFC 6455 and sends back whatever comes, as it comes.
func webSocket(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "a WebSocket is here", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	_, _ = io.Copy(conn, rw)
}

// raw answers with bytes of the test's choice and hangs up.
func raw(w http.ResponseWriter, r *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, r.FormValue("answer"))
}

var entered, aborted atomic.Int64

// wait reads the body and then waits for the visitor to leave; with count=1 it says how many
// came and how many did leave.
func wait(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("count") != "" {
		_ = json.NewEncoder(w).Encode(map[string]int64{"entered": entered.Load(), "aborted": aborted.Load()})
		return
	}
	entered.Add(1)
	fmt.Println("probe: waits")
	_, err := io.Copy(io.Discard, r.Body)
	if err == nil {
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
			return
		}
	}
	aborted.Add(1)
}

var inside, most atomic.Int64

// gauge stays for a while and says how many have been there at once, at most.
func gauge(w http.ResponseWriter, r *http.Request) {
	n := inside.Add(1)
	defer inside.Add(-1)
	for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
	}
	time.Sleep(time.Duration(number(r, "ms")) * time.Millisecond)
	fmt.Fprint(w, most.Load())
}

var visits struct {
	sync.Mutex
	names []string
}

// seen remembers a name; without one it tells them all in order.
func seen(w http.ResponseWriter, r *http.Request) {
	visits.Lock()
	defer visits.Unlock()
	if name := r.FormValue("name"); name != "" {
		visits.names = append(visits.names, name)
	}
	_ = json.NewEncoder(w).Encode(visits.names)
}
