package front

import (
	"bytes"
	"strings"
	"testing"
)

func sample() *Manifest {
	sum := strings.Repeat("a", 64)
	return &Manifest{Whole: true, Folder: "dist", Fallback: "/index.html", Files: []File{
		{Path: "/index.html", Type: "text/html; charset=utf-8", Content: Content{sum, 5}},
		{Path: "/a b/ü.js", Type: TypeOf("ü.js"), Immutable: true, Content: Content{sum, 9},
			Encoded: []Encoded{{"br", Content{strings.Repeat("b", 64), 4}}, {"gzip", Content{sum, 5}}}},
	}}
}

func TestManifestComesBack(t *testing.T) {
	b, digest, err := sample().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	again, same, err := m.Bytes()
	if err != nil || !bytes.Equal(b, again) || same != digest {
		t.Errorf("it came back as %s, %v", again, err)
	}
	if len(m.Contents()) != 2 || m.Files[0].Path != "/a b/ü.js" {
		t.Errorf("got %+v", m)
	}
}

func TestManifestIsBelievedInNothing(t *testing.T) {
	b, _, err := sample().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct{ old, new string }{
		{`"version":1`, `"version":2`},
		{`/index.html","type`, `/../index.html","type`},
		{`/index.html","type`, `index.html","type`},
		{`/index.html","type`, `/a/index.html/","type`},
		{`/index.html","type`, `/\u0000.html","type`},
		{`/index.html","type`, `/a b/ü.js","type`},
		{`"fallback":"/index.html"`, `"fallback":"/other.html"`},
		{`text/html`, `text/html\r\nSet-Cookie: a=b`},
		{strings.Repeat("a", 64), strings.Repeat("A", 64)},
		{strings.Repeat("b", 64), "../" + strings.Repeat("b", 61)},
		{`"size":5`, `"size":-5`},
		{`"br"`, `"gzip"`},
		{`"br"`, `"deflate"`},
	} {
		text := strings.ReplaceAll(string(b), change.old, change.new)
		if text == string(b) {
			t.Fatalf("%q changes nothing", change.old)
		}
		if m, err := ParseManifest([]byte(text)); err == nil {
			t.Errorf("%q for %q was taken: %+v", change.new, change.old, m)
		}
	}
	if _, err := ParseManifest(append(b, '{')); err == nil {
		t.Error("what follows was taken")
	}
}

func FuzzManifest(f *testing.F) {
	b, _, err := sample().Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"files":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		written, _, err := m.Bytes()
		if err != nil {
			t.Fatalf("taken, but cannot be written: %v", err)
		}
		if _, err := ParseManifest(written); err != nil {
			t.Fatalf("written, but not taken: %v", err)
		}
		for _, file := range m.Files {
			if !GoodPath(file.Path) || strings.ContainsAny(file.Type, "\r\n") || !IsSum(file.SHA256) {
				t.Fatalf("bad file %+v", file)
			}
		}
	})
}
