package static

import (
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
	"github.com/leapcell/leapcell/traefik/wake"
)

// forever is a year, as long as caches keep anything. (RFC 9111, 5.2.2.1; RFC 8246)
const forever = "public, max-age=31536000, immutable"

// file answers with a file. status is 200, or 404 for the page that says so.
func (s *Server) file(w http.ResponseWriter, r *http.Request, route *leapcell.Route, f *front.File, status int) wake.StaticResult {
	content, encoding, ok := choose(f, r.Header["Accept-Encoding"])
	head := w.Header()
	if len(f.Encoded) > 0 {
		head.Set("Vary", "Accept-Encoding")
	}
	if !ok {
		return s.say(w, r, route, http.StatusNotAcceptable, "No encoding of this file is acceptable")
	}
	tag := `"` + content.SHA256[:32] + `"`
	span := span{0, content.Size}
	if status == http.StatusOK {
		switch status = conditions(r, tag); status {
		case http.StatusPreconditionFailed:
			return s.say(w, r, route, status, "The file has changed")
		case http.StatusNotModified:
			entity(head, f, tag)
			s.count(route, 0)
			w.WriteHeader(status)
			return wake.StaticResult{Status: status}
		}
		span, status = part(r, tag, content.Size)
		if status == http.StatusRequestedRangeNotSatisfiable {
			head.Set("Content-Range", "bytes */"+strconv.FormatInt(content.Size, 10))
			return s.say(w, r, route, status, "The file has no such part")
		}
		head.Set("Accept-Ranges", "bytes")
		entity(head, f, tag)
	} else {
		head.Set("Cache-Control", "no-cache")
	}
	var body *os.File
	if r.Method != http.MethodHead {
		var err error
		if body, err = s.open(r.Context(), route.ServiceID, content); err != nil {
			clear(head, "Vary", "Accept-Ranges", "ETag", "Cache-Control")
			return s.without(r.Context(), whole(route), err)
		}
		defer body.Close()
	}
	if encoding != "" {
		head.Set("Content-Encoding", encoding)
	}
	if status == http.StatusPartialContent {
		head.Set("Content-Range", span.of(content.Size))
	}
	head.Set("Content-Type", f.Type)
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Content-Length", strconv.FormatInt(span.size, 10))
	result := wake.StaticResult{Status: status}
	if body == nil {
		s.count(route, 0)
		w.WriteHeader(status)
		return result
	}
	w.WriteHeader(status)
	n, err := s.send(w, route, body, span)
	result.Bytes, result.Aborted = n, err != nil
	if err == nil && n < span.size { // the disk has less than it had: never a silently shorter answer
		panic(http.ErrAbortHandler)
	}
	return result
}

// send sends a part of a file. The request is counted before its last piece leaves: who has all of
// it was counted, and who was cut off by the end of this process was not. [BI3]
func (s *Server) send(w io.Writer, route *leapcell.Route, body io.ReaderAt, part span) (int64, error) {
	first := max(0, part.size-bufferSize)
	n, err := copyTo(w, io.NewSectionReader(body, part.start, first))
	if err != nil || n < first {
		s.count(route, n)
		return n, err
	}
	s.count(route, part.size)
	last, err := copyTo(w, io.NewSectionReader(body, part.start+first, part.size-first))
	n += last
	if n != part.size && s.cfg.Count != nil {
		s.cfg.Count(route.ServiceID, 0, n-part.size)
	}
	return n, err
}

// count counts one request.
func (s *Server) count(route *leapcell.Route, bytes int64) {
	if s.cfg.Count != nil {
		s.cfg.Count(route.ServiceID, 1, bytes)
	}
}

const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func copyTo(w io.Writer, r io.Reader) (int64, error) {
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	return io.CopyBuffer(w, r, buffer[:])
}

// entity says by what the file can be asked for again.
func entity(head http.Header, f *front.File, tag string) {
	head.Set("ETag", tag)
	if f.Immutable {
		head.Set("Cache-Control", forever)
	} else {
		head.Set("Cache-Control", "no-cache")
	}
}

func clear(head http.Header, names ...string) {
	for _, name := range names {
		head.Del(name)
	}
}

// say answers with a line of text.
func (s *Server) say(w http.ResponseWriter, r *http.Request, route *leapcell.Route, status int, text string) wake.StaticResult {
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Content-Length", strconv.Itoa(len(text)+1))
	bytes := int64(len(text) + 1)
	if r.Method == http.MethodHead {
		bytes = 0
	}
	s.count(route, bytes)
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return wake.StaticResult{Status: status}
	}
	n, err := io.WriteString(w, text+"\n")
	return wake.StaticResult{Status: status, Bytes: int64(n), Aborted: err != nil}
}
