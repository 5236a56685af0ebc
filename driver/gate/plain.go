package gate

import (
	"bytes"
	"strings"

	"github.com/leapcell/leapcell"
)

// plainRequest is a request that can be passed on as it is, but for one line.
type plainRequest struct {
	head     []byte
	from, to int    // the line that names the instance, which the app need not know; none if equal
	rest     []byte // what came behind the request
}

func (r plainRequest) fromEdge() bool { return r.to > 0 }

// parsePlainRequest reads a request that is whole and has nothing that somebody on the way
// would have to understand. What it does not take is not wrong: it is for the server to judge.
func parsePlainRequest(b []byte, instance string) (plainRequest, bool) {
	const get, version = "GET /", " HTTP/1.1\r\n"
	var r plainRequest
	if !bytes.HasPrefix(b, []byte(get)) {
		return r, false
	}
	end := plainTarget(b, len(get))
	if !bytes.HasPrefix(b[end:], []byte(version)) {
		return r, false
	}
	host := false
	for at := end + len(version); ; {
		name, value, next, ok := headerLine(b, at)
		if !ok {
			return r, false
		}
		if name == nil {
			r.head, r.rest = b[:next], b[next:]
			return r, host
		}
		switch requestHeader(name) {
		case special:
			return r, false
		case hostHeader:
			if host || !plainHost(value) {
				return r, false
			}
			host = true
		case instanceHeader:
			if r.fromEdge() || string(value) != instance {
				return r, false
			}
			r.from, r.to = at, next
		}
		at = next
	}
}

// plainTarget is where the target ends that begins before the index at.
func plainTarget(b []byte, at int) int {
	for ; at < len(b); at++ {
		switch {
		case targetByte[b[at]]:
		case b[at] == '%' && at+2 < len(b) && hexByte[b[at+1]] && hexByte[b[at+2]]:
		default:
			return at
		}
	}
	return at
}

// plainAnswer is an answer that can be passed on line by line.
type plainAnswer struct {
	status  int
	headers []byte // the lines
	body    []byte
	length  int  // of head and body
	dated   bool // has a Date
	last    bool // the app closes the connection
	dropped bool // there are lines that stay here
}

type verdict int

const (
	odd      verdict = iota // it is for others to read
	more                    // not all of it is there; length is what is known to be needed, or 0
	complete                // it is
)

// parsePlainAnswer reads an answer with an announced length, of a status that has a body.
func parsePlainAnswer(b []byte) (plainAnswer, verdict) {
	const version, line = "HTTP/1.1 ", len("HTTP/1.1 200 ")
	var a plainAnswer
	if len(b) < line {
		return a, more
	}
	if !bytes.HasPrefix(b, []byte(version)) || b[line-1] != ' ' && b[line-1] != '\r' {
		return a, odd
	}
	for _, c := range b[len(version) : line-1] {
		if c < '0' || c > '9' {
			return a, odd
		}
		a.status = 10*a.status + int(c-'0')
	}
	if a.status < 200 || a.status > 599 || a.status == 204 || a.status == 304 {
		return a, odd
	}
	at := bytes.IndexByte(b, '\n') + 1
	if at == 0 {
		return a, more
	}
	if b[at-2] != '\r' {
		return a, odd
	}
	if !bytes.Contains(b[at-2:], []byte("\r\n\r\n")) {
		return a, more
	}
	begin, size := at, -1
	for {
		name, value, next, ok := headerLine(b, at)
		if !ok {
			return a, odd
		}
		if name == nil {
			if size < 0 {
				return a, odd
			}
			a.headers, a.length = b[begin:at], next+size
			if len(b) < a.length {
				return a, more
			}
			a.body = b[next:a.length]
			return a, complete
		}
		switch answerHeader(name) {
		case special:
			return a, odd
		case lengthHeader:
			if size, ok = plainLength(value); !ok || a.length > 0 {
				return a, odd
			}
			a.length = 1 // seen
		case dateHeader:
			a.dated = true
		case connectionHeader:
			switch {
			case equalFold(value, "close"):
				a.last = true
			case !equalFold(value, "keep-alive"):
				return a, odd
			}
			a.dropped = true
		case droppedHeader:
			a.dropped = true
		}
		at = next
	}
}

// appendHeaders gives the lines that are meant for the visitor.
func (a plainAnswer) appendHeaders(out []byte) []byte {
	if !a.dropped {
		return append(out, a.headers...)
	}
	for at := 0; at < len(a.headers); {
		name, _, next, _ := headerLine(a.headers, at) // was read before
		if kind := answerHeader(name); kind != connectionHeader && kind != droppedHeader {
			out = append(out, a.headers[at:next]...)
		}
		at = next
	}
	return out
}

// headerLine reads the line at the index at; next is the index behind it. The empty line has
// the name nil. A line that is not there whole, or is not made of what every reader of HTTP
// reads alike, is not ok.
func headerLine(b []byte, at int) (name, value []byte, next int, ok bool) {
	line := b[at:]
	if len(line) >= 2 && line[0] == '\r' && line[1] == '\n' {
		return nil, nil, at + 2, true
	}
	colon := 0
	for colon < len(line) && tokenByte[line[colon]] {
		colon++
	}
	if colon == 0 || colon == len(line) || line[colon] != ':' {
		return nil, nil, 0, false
	}
	end := colon + 1
	for end < len(line) && (line[end] >= ' ' && line[end] != 0x7f || line[end] == '\t') {
		end++
	}
	if end+1 >= len(line) || line[end] != '\r' || line[end+1] != '\n' {
		return nil, nil, 0, false
	}
	// A line that begins with a blank would belong to this one: its name is then not ok.
	return line[:colon], bytes.Trim(line[colon+1:end], " \t"), at + end + 2, true
}

// kind is what the lane has to know of a header.
type kind int

const (
	ordinary kind = iota
	special       // not for the lane
	hostHeader
	instanceHeader
	lengthHeader
	dateHeader
	connectionHeader
	droppedHeader
)

func requestHeader(name []byte) kind {
	switch len(name) {
	case 2: // TE
		if equalFold(name, "te") {
			return special
		}
	case 4:
		if equalFold(name, "host") {
			return hostHeader
		}
	case 6:
		if equalFold(name, "expect") {
			return special
		}
	}
	if equalFold(name, leapcell.HeaderInstance) {
		return instanceHeader
	}
	return common(name)
}

func answerHeader(name []byte) kind {
	switch len(name) {
	case 4:
		if equalFold(name, "date") {
			return dateHeader
		}
	case 10:
		if equalFold(name, "connection") {
			return connectionHeader
		}
		if equalFold(name, "keep-alive") {
			return droppedHeader
		}
	case 14:
		if equalFold(name, "content-length") {
			return lengthHeader
		}
	}
	return common(name)
}

// common finds what is special both ways: what speaks of the connection, frames the body, or
// is or looks like the platform's own.
func common(name []byte) kind {
	switch len(name) {
	case 7:
		if equalFold(name, "trailer") || equalFold(name, "upgrade") {
			return special
		}
	case 10:
		if equalFold(name, "connection") || equalFold(name, "keep-alive") {
			return special
		}
	case 14:
		if equalFold(name, "content-length") {
			return special
		}
	case 17:
		if equalFold(name, "transfer-encoding") {
			return special
		}
	}
	const proxy = "proxy-"
	if len(name) >= len(proxy) && equalFold(name[:len(proxy)], proxy) ||
		len(name) >= len(leapcell.HeaderPrefix) && equalFold(name[:len(leapcell.HeaderPrefix)], leapcell.HeaderPrefix) ||
		bytes.IndexByte(name, '_') >= 0 {
		return special
	}
	return ordinary
}

func equalFold(b []byte, s string) bool {
	return len(b) == len(s) && strings.EqualFold(string(b), s)
}

// plainLength reads a Content-Length.
func plainLength(value []byte) (int, bool) {
	if len(value) == 0 || len(value) > 9 {
		return 0, false
	}
	n := 0
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

// plainHost reports whether it is a name or an address, with or without a port.
func plainHost(value []byte) bool {
	for _, c := range value {
		if !tokenByte[c] && c != ':' && c != '[' && c != ']' {
			return false
		}
	}
	return len(value) > 0
}

// tokenByte are the bytes of a header's name, targetByte those of a target, but for "%".
var (
	tokenByte  = byteSet("!#$%&'*+-.^_`|~")
	targetByte = byteSet("-._~!$&'()*+,;=:@/?")
	hexByte    = byteSet("")
)

func init() {
	for c := range hexByte {
		hexByte[c] = hexByte[c] && (c <= '9' || c|0x20 <= 'f')
	}
}

func byteSet(others string) (set [256]bool) {
	for c := range set {
		set[c] = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(others, byte(c)) >= 0
	}
	return set
}
