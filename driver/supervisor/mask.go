package supervisor

import (
	"bytes"
	"cmp"
	"slices"
)

// maskedFrom is the length from which a value is kept out of a log: shorter ones, such as a port
// or "true", would make it unreadable and are no secrets.
const maskedFrom = 4

var maskText = []byte("***")

// mask takes values out of a stream of bytes, also those that come in parts.
type mask struct {
	secrets [][]byte // the longest first
	begins  [256]bool
	held    []byte // what may be the beginning of one
}

// newMask gives nil when there is nothing to hide. Of a value of several lines each is hidden, since
// programs print them one by one.
func newMask(values map[string]string) *mask {
	m := &mask{}
	add := func(secret []byte) {
		if len(secret) >= maskedFrom {
			m.secrets = append(m.secrets, bytes.Clone(secret))
			m.begins[secret[0]] = true
		}
	}
	for _, v := range values {
		add([]byte(v))
		for line := range bytes.Lines([]byte(v)) {
			add(bytes.TrimSpace(line))
		}
	}
	if len(m.secrets) == 0 {
		return nil
	}
	slices.SortFunc(m.secrets, func(a, b []byte) int { return cmp.Or(len(b)-len(a), bytes.Compare(a, b)) })
	m.secrets = slices.CompactFunc(m.secrets, bytes.Equal)
	return m
}

// pass gives what of p, and of what was held before, can be shown by now.
func (m *mask) pass(p []byte) []byte {
	in := append(m.held, p...)
	out := make([]byte, 0, len(in))
	for len(in) > 0 {
		if !m.begins[in[0]] {
			n := 1
			for n < len(in) && !m.begins[in[n]] {
				n++
			}
			out, in = append(out, in[:n]...), in[n:]
			continue
		}
		n, wait := m.match(in)
		switch {
		case wait:
			m.held = bytes.Clone(in)
			return out
		case n > 0:
			out, in = append(out, maskText...), in[n:]
		default:
			out, in = append(out, in[0]), in[1:]
		}
	}
	m.held = nil
	return out
}

// match is the length of the secret with which in begins; wait says that more must come before
// that can be told.
func (m *mask) match(in []byte) (n int, wait bool) {
	for _, s := range m.secrets {
		if bytes.HasPrefix(in, s) {
			return len(s), false
		}
		if bytes.HasPrefix(s, in) {
			return 0, true
		}
	}
	return 0, false
}

// rest gives what is held, when nothing more comes. A part of a secret may be as telling as the
// whole.
func (m *mask) rest() []byte {
	out := m.held
	m.held = nil
	if len(out) >= maskedFrom {
		return maskText
	}
	return out
}
