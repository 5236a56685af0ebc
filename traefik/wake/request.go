package wake

import (
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/leapcell/leapcell"
)

const headerRequestID = "X-Request-Id"

// Host is the name in a Host header as routes have it: lower case, without port and
// without the dot at the end. What is no host name comes out as something no route has.
func Host(hostport string) string {
	host := hostport
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 {
			return ""
		}
		host = host[1:end]
	} else if colon := strings.IndexByte(host, ':'); colon >= 0 {
		host = host[:colon]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// checkLimits is RQ3 for what arrives before the body. Go's server has a limit over all
// headers only and answers 431 to all of it, so the edge lets it read more and looks itself.
func checkLimits(r *http.Request) *refusal {
	if r.Method == http.MethodConnect {
		return refuseConnect
	}
	if r.URL.Opaque != "" { // "mailto:a": none of the forms of RFC 9112, 3.2
		return refuseTarget
	}
	const httpVersion = len("  HTTP/1.1")
	if len(r.Method)+len(r.RequestURI)+httpVersion > leapcell.MaxRequestLineBytes {
		return refuseLine
	}
	const separators = len(": \r\n")
	sum := len("Host") + len(r.Host) + separators
	for name, values := range r.Header {
		if addedHere(name) {
			continue
		}
		for _, v := range values {
			size := len(name) + len(v) + separators
			if size > leapcell.MaxHeaderBytes {
				return refuseHeader
			}
			sum += size
		}
	}
	if sum > leapcell.MaxHeadersBytes {
		return refuseHeaders
	}
	return nil
}

// addedHere reports whether the entry point or we set the header, and put off what a visitor
// sent under that name: it does not count against the visitor's limits.
func addedHere(name string) bool {
	switch name {
	case "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server",
		"X-Real-Ip", headerRequestID:
		return true
	}
	return false
}

// dubiousFraming reports whether another server in the chain may see the end of the request
// elsewhere: a chunked one may have had a Content-Length as well, one of HTTP/1.0 a
// Transfer-Encoding. Go's server removes what it does not follow, so that this cannot be seen
// any more; RFC 9112 (6.1) wants the connection closed after both.
func dubiousFraming(r *http.Request) bool {
	return r.ProtoMajor == 1 && (len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1))
}

// prepare makes the visitor's headers what an app may rely on [RQ7]. The X-Forwarded
// headers of untrusted visitors were removed by the entry point already. What was between
// the visitor and the edge only is taken off and noted in c, as far as it matters.
func prepare(r *http.Request, c *call) {
	head := r.Header
	c.protocol = upgrade(head)
	for _, t := range head["Te"] {
		c.trailers = c.trailers || strings.EqualFold(strings.TrimSpace(t), "trailers")
	}
	c.expects = len(head["Expect"]) > 0 // the server refuses other values than 100-continue
	dropHopByHop(head)
	delete(head, "Expect")
	delete(head, "Content-Length") // the request has it as a field of its own
	dropPlatform(head)
	if ids := head[headerRequestID]; len(ids) != 1 || !saneRequestID(ids[0]) {
		head[headerRequestID] = []string{newRequestID()}
	}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		if before := head["X-Forwarded-For"]; len(before) > 0 {
			ip = strings.Join(before, ", ") + ", " + ip
		}
		head["X-Forwarded-For"] = []string{ip}
	}
	if len(head["X-Forwarded-Proto"]) == 0 {
		proto := "http"
		if r.TLS != nil {
			proto = "https"
		}
		head["X-Forwarded-Proto"] = []string{proto}
	}
	if len(head["X-Forwarded-Host"]) == 0 {
		head["X-Forwarded-Host"] = []string{r.Host}
	}
}

// dropPlatform removes the platform's own headers, whoever wrote them.
func dropPlatform(head http.Header) {
	for name := range head {
		if len(name) >= len(leapcell.HeaderPrefix) && strings.EqualFold(name[:len(leapcell.HeaderPrefix)], leapcell.HeaderPrefix) {
			delete(head, name)
		}
	}
}

// dropHopByHop removes what is between two neighbours only.
func dropHopByHop(head http.Header) {
	for _, line := range head["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				head.Del(name)
			}
		}
	}
	for _, name := range [...]string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate",
		"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(head, name)
	}
}

// upgrade is the protocol that the headers ask to change to, or "".
func upgrade(head http.Header) string {
	for _, line := range head["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(name), "upgrade") {
				return head.Get("Upgrade")
			}
		}
	}
	return ""
}

// saneRequestID reports whether a visitor's request id may go into logs and on to the app.
func saneRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.:/+=@", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func newRequestID() string {
	b := make([]byte, 0, 32)
	for range 2 {
		v := strconv.FormatUint(rand.Uint64(), 16)
		b = append(b, "0000000000000000"[len(v):]...)
		b = append(b, v...)
	}
	return string(b)
}
