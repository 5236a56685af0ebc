package static

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/leapcell/leapcell/internal/front"
)

// choose picks the smallest content of those that the visitor likes best. ok is false when
// none is acceptable. (RFC 9110, 12.5.3)
func choose(f *front.File, accept []string) (content front.Content, encoding string, ok bool) {
	if len(f.Encoded) == 0 && len(accept) == 0 {
		return f.Content, "", true
	}
	best := weight(accept, "identity")
	content, ok = f.Content, best > 0
	for _, e := range f.Encoded {
		q := weight(accept, e.Encoding)
		if q > best || q == best && q > 0 && e.Size < content.Size {
			content, encoding, best, ok = e.Content, e.Encoding, q, true
		}
	}
	return content, encoding, ok
}

// weight is the q value of an encoding in thousandths. Without the header, only the file as it
// is will do; with it, that will do unless it is refused, but less than anything that is named.
func weight(accept []string, encoding string) int {
	star := -1
	for _, line := range accept {
		for item := range strings.SplitSeq(line, ",") {
			name, rest, _ := strings.Cut(item, ";")
			name = strings.TrimSpace(name)
			if strings.EqualFold(name, encoding) || encoding == "gzip" && strings.EqualFold(name, "x-gzip") {
				return quality(rest)
			}
			if name == "*" {
				star = quality(rest)
			}
		}
	}
	switch {
	case encoding == "identity" && star == 0:
		return 0
	case encoding == "identity":
		return 1
	case star >= 0:
		return star
	}
	return 0
}

// quality reads "q=0.5" as 500. What is not well-formed does not count as a refusal.
func quality(params string) int {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 1000
		}
		return int(q*1000 + 0.5)
	}
	return 1000
}

// conditions is what the visitor's own copy makes of the answer: 200, 304 or 412. There is no
// Last-Modified, so dates say nothing. (RFC 9110, 13.2.2)
func conditions(r *http.Request, tag string) int {
	if lines := r.Header["If-Match"]; len(lines) > 0 && !has(lines, tag, false) {
		return http.StatusPreconditionFailed
	}
	if has(r.Header["If-None-Match"], tag, true) {
		return http.StatusNotModified
	}
	return http.StatusOK
}

// has reports whether lists of entity tags name ours, which is a strong one.
func has(lines []string, tag string, weak bool) bool {
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			item = strings.TrimSpace(item)
			if weak {
				item = strings.TrimPrefix(item, "W/")
			}
			if item == tag || item == "*" {
				return true
			}
		}
	}
	return false
}

// span is a part of a content.
type span struct{ start, size int64 }

func (s span) of(size int64) string {
	return "bytes " + strconv.FormatInt(s.start, 10) + "-" + strconv.FormatInt(s.start+s.size-1, 10) + "/" + strconv.FormatInt(size, 10)
}

// part is what of a content is asked for: 200 for all of it, 206, or 416. Of several ranges
// all of it is given, which every client must understand. (RFC 9110, 14.2)
func part(r *http.Request, tag string, size int64) (span, int) {
	all := span{0, size}
	asked := r.Header["Range"]
	if len(asked) != 1 || r.Method != http.MethodGet {
		return all, http.StatusOK
	}
	if same := r.Header.Get("If-Range"); same != "" && same != tag {
		return all, http.StatusOK
	}
	found, ok := parseRange(asked[0], size)
	if !ok {
		return all, http.StatusOK
	}
	if found.size <= 0 {
		return all, http.StatusRequestedRangeNotSatisfiable
	}
	return found, http.StatusPartialContent
}

// parseRange reads a single range of bytes; ok is false for anything else. A range of no bytes
// cannot be satisfied.
func parseRange(text string, size int64) (s span, ok bool) {
	unit, text, ok := strings.Cut(text, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return span{}, false
	}
	first, last, ok := strings.Cut(strings.TrimSpace(text), "-")
	if !ok {
		return span{}, false
	}
	if first == "" {
		n, ok := number(last)
		n = min(n, size)
		return span{size - n, n}, ok
	}
	from, ok := number(first)
	to := size - 1
	if ok && last != "" {
		to, ok = number(last)
	}
	if !ok || last != "" && to < from {
		return span{}, false
	}
	if from >= size {
		return span{}, true
	}
	return span{from, min(to, size-1) - from + 1}, true
}

// number reads digits. One that is too large for any file stands for the largest.
func number(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		n = 1<<63 - 1
	}
	return n, true
}
