package supply

import (
	"bufio"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"path"
	"regexp"
	"strings"
)

// Package is one that an image has.
type Package struct {
	Type    string `json:"type"` // as package URLs call it: deb, apk, pypi, npm, golang, cargo
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch,omitempty"`
	Licence string `json:"licence,omitempty"`
}

// textLimit bounds each field of a package: what is longer is no name.
const textLimit = 300

func (p Package) ok() bool {
	return p.Name != "" && p.Version != "" && len(p.Name) <= textLimit && len(p.Version) <= textLimit && len(p.Arch) <= textLimit
}

var npmFile = regexp.MustCompile(`(?:^|/)node_modules/(?:@[^/]+/)?[^/]+/package\.json$`)

// listParser gives what reads the file with that name, nil for a file that tells of no packages.
func listParser(name string) func([]byte) found {
	base, dir := path.Base(name), path.Dir(name)
	switch {
	case name == "var/lib/dpkg/status", dir == "var/lib/dpkg/status.d" && path.Ext(base) != ".md5sums":
		return func(b []byte) found { return found{Packages: dpkg(b)} }
	case name == "lib/apk/db/installed", name == "usr/lib/apk/db/installed":
		return func(b []byte) found { return found{Packages: apk(b)} }
	case name == "etc/os-release", name == "usr/lib/os-release":
		return osRelease
	case base == "METADATA" && strings.HasSuffix(dir, ".dist-info"), base == "PKG-INFO" && strings.HasSuffix(dir, ".egg-info"), strings.HasSuffix(base, ".egg-info"):
		return func(b []byte) found { return found{Packages: python(b)} }
	case npmFile.MatchString(name):
		return func(b []byte) found { return found{Packages: npm(b)} }
	case base == "Cargo.lock":
		return func(b []byte) found { return found{Packages: cargo(b)} }
	}
	return nil
}

// lines calls each for the lines of text, without their ends.
func lines(text []byte, each func(string) bool) {
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, fileLimit)
	for s.Scan() {
		if !each(s.Text()) {
			return
		}
	}
}

// stanzas calls each with the fields of a paragraph: what is before and after the separator. Lines that
// go on from the one before are left out.
func stanzas(text []byte, separator string, each func(map[string]string)) {
	fields := map[string]string{}
	end := func() {
		if len(fields) > 0 {
			each(fields)
			fields = map[string]string{}
		}
	}
	lines(text, func(line string) bool {
		switch name, value, ok := strings.Cut(line, separator); {
		case strings.TrimSpace(line) == "":
			end()
		case ok && line[0] != ' ' && line[0] != '\t':
			fields[name] = strings.TrimSpace(value)
		}
		return true
	})
	end()
}

// dpkg reads what Debian's package manager has installed.
func dpkg(text []byte) (out []Package) {
	stanzas(text, ":", func(f map[string]string) {
		status := f["Status"] // not there in distroless images
		p := Package{Type: "deb", Name: f["Package"], Version: f["Version"], Arch: f["Architecture"]}
		if p.ok() && (status == "" || strings.HasSuffix(status, " installed")) {
			out = append(out, p)
		}
	})
	return out
}

// apk reads what Alpine's package manager has installed.
func apk(text []byte) (out []Package) {
	stanzas(text, ":", func(f map[string]string) {
		if p := (Package{Type: "apk", Name: f["P"], Version: f["V"], Arch: f["A"], Licence: f["L"]}); p.ok() {
			out = append(out, p)
		}
	})
	return out
}

func osRelease(text []byte) found {
	var s system
	lines(text, func(line string) bool {
		name, value, _ := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"'`)
		if len(value) > textLimit {
			return true
		}
		switch name {
		case "ID":
			s.ID = value
		case "VERSION_ID":
			s.Version = value
		case "PRETTY_NAME":
			s.Name = value
		}
		return true
	})
	if s.ID == "" {
		return found{}
	}
	return found{System: &s}
}

// python reads the head of a distribution's metadata.
func python(text []byte) []Package {
	p := Package{Type: "pypi"}
	lines(text, func(line string) bool {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Name":
			p.Name = value
		case "Version":
			p.Version = value
		case "License-Expression":
			p.Licence = value
		}
		return strings.TrimSpace(line) != ""
	})
	if !p.ok() {
		return nil
	}
	return []Package{p}
}

// npm reads the package.json of an installed package.
func npm(text []byte) []Package {
	var f struct {
		Name    string          `json:"name"`
		Version string          `json:"version"`
		License json.RawMessage `json:"license"`
	}
	if json.Unmarshal(text, &f) != nil {
		return nil
	}
	p := Package{Type: "npm", Name: f.Name, Version: f.Version}
	_ = json.Unmarshal(f.License, &p.Licence) // older ones have an object
	if !p.ok() {
		return nil
	}
	return []Package{p}
}

// cargo reads what a Cargo.lock names from elsewhere: those without a source are of the tree itself.
func cargo(text []byte) (out []Package) {
	var p Package
	source := false
	end := func() {
		if p.Type = "cargo"; p.ok() && source {
			out = append(out, p)
		}
		p, source = Package{}, false
	}
	lines(text, func(line string) bool {
		if strings.HasPrefix(line, "[") {
			end()
			return true
		}
		name, value, _ := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.TrimSpace(name) {
		case "name":
			p.Name = value
		case "version":
			p.Version = value
		case "source":
			source = true
		}
		return true
	})
	end()
	return out
}

// program reads what the Go compiler has written into a program. Others tell nothing.
func program(r io.ReaderAt) (out []Package) {
	defer func() {
		if recover() != nil { // the reader of ELF files is not made for those that somebody forged
			out = nil
		}
	}()
	info, err := buildinfo.Read(r)
	if err != nil {
		return nil
	}
	if v := strings.TrimPrefix(info.GoVersion, "go"); v != info.GoVersion {
		version, _, _ := strings.Cut(v, " ")
		out = append(out, Package{Type: "golang", Name: "stdlib", Version: version})
	}
	for _, m := range info.Deps {
		if m == nil {
			continue
		}
		if m.Replace != nil {
			m = m.Replace
		}
		if p := (Package{Type: "golang", Name: m.Path, Version: m.Version}); p.ok() && len(out) < packageLimit {
			out = append(out, p)
		}
	}
	return out
}
