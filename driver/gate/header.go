package gate

import (
	"maps"
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/leapcell/leapcell"
)

// hopByHop reports whether a header speaks about one connection only. [RQ7]
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// addedByEdge reports whether an edge puts the header on the request: what it adds does not
// count against the visitor's limits.
func addedByEdge(name string) bool {
	switch name {
	case "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server",
		"X-Real-Ip", "X-Request-Id", "Te", "Expect", "Connection", "Upgrade":
		return true
	}
	return strings.HasPrefix(name, leapcell.HeaderPrefix)
}

// platforms reports whether the header is the platform's own, which no visitor and no app
// may send. An app that could send HeaderGone would have its requests repeated elsewhere. To
// frameworks in the manner of CGI "-" and "_" in a name are the same: what would there pass
// for one of ours, or for what edges say of a visitor, is one as well.
func platforms(name string) bool {
	if !strings.Contains(name, "_") {
		return len(name) >= len(leapcell.HeaderPrefix) && strings.EqualFold(name[:len(leapcell.HeaderPrefix)], leapcell.HeaderPrefix)
	}
	name = textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, leapcell.HeaderPrefix) || addedByEdge(name)
}

// connectionOptions are the headers that a Connection header names.
func connectionOptions(h http.Header) map[string]bool {
	var named map[string]bool
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			name = textproto.TrimString(name)
			if name == "" || strings.EqualFold(name, "close") || strings.EqualFold(name, "keep-alive") || strings.EqualFold(name, "upgrade") {
				continue
			}
			if named == nil {
				named = map[string]bool{}
			}
			named[textproto.CanonicalMIMEHeaderKey(name)] = true
		}
	}
	return named
}

// passes calls f with each header of a request that goes on to the app as it is.
func passes(h http.Header, f func(name, value string)) {
	named := connectionOptions(h)
	for name, values := range h {
		// The server says "100 Continue" itself when the body begins to be read, and the
		// body's length is a field of the request.
		if hopByHop(name) || name == "Expect" || name == "Content-Length" || platforms(name) || named[name] {
			continue
		}
		for _, value := range values {
			f(name, value)
		}
	}
}

func wantsTrailers(h http.Header) bool {
	te := h["Te"]
	return len(te) > 0 && httpguts.HeaderValuesContainsToken(te, "trailers")
}

// copyHeader takes over the headers of an answer that are meant for the visitor.
func copyHeader(dst, src http.Header) {
	named := connectionOptions(src)
	for name, values := range src {
		if !hopByHop(name) && !platforms(name) && !named[name] {
			dst[name] = values
		}
	}
}

func announceTrailers(h, trailers http.Header) {
	for name := range trailers {
		if !platforms(name) {
			h.Add("Trailer", name)
		}
	}
}

// copyTrailers gives the server what came after the body; it must know beforehand which of
// them were announced.
func copyTrailers(h, trailers http.Header) {
	announced := map[string]bool{}
	for _, name := range h["Trailer"] {
		announced[name] = true
	}
	for name, values := range trailers {
		switch {
		case platforms(name):
		case announced[name]:
			h[name] = values
		default:
			h[http.TrailerPrefix+name] = values
		}
	}
}

// inform passes an interim answer on, Early Hints for example. What is set already belongs
// to the final one. False says that the visitor left: nothing of w may be touched any more,
// because Go's HTTP/2 server may then still be writing from the map of headers.
func inform(w http.ResponseWriter, r *http.Request, status int, header http.Header) bool {
	if !r.ProtoAtLeast(1, 1) {
		return true // HTTP/1.0 does not know them
	}
	h := w.Header()
	final := maps.Clone(h)
	clear(h)
	copyHeader(h, header)
	w.WriteHeader(status)
	if r.Context().Err() != nil {
		return false
	}
	clear(h)
	maps.Copy(h, final)
	return true
}
