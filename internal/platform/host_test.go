package platform

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine is a file system with these files.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostEnvironment(t *testing.T) {
	root := machine(t, map[string]string{"etc/ssl/certs/ca-certificates.crt": "CA", "opt/own.pem": "OWN", "opt/wheels/x": ""})
	s := Host{Root: root, Home: "/root", Go: map[string]string{"GOPROXY": "https://go.mirror.test"}, Environ: []string{
		"HTTPS_PROXY=http://proxy.test:3128", "no_proxy=.test", "PIP_INDEX_URL=https://py.mirror.test/simple", "PIP_TARGET=/srv",
		"PIP_FIND_LINKS=/opt/wheels", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "NODE_EXTRA_CA_CERTS=/opt/own.pem",
		"REQUESTS_CA_BUNDLE=/none.pem", "CARGO_REGISTRIES_OWN_INDEX=sparse+https://rs.test/", "CARGO_REGISTRIES_OWN_TOKEN=hush",
		"CARGO_HOME=/srv/cargo", "AWS_SECRET_ACCESS_KEY=hush", "PATH=/bin", "npm_config_registry=https://js.mirror.test", "HTTP_PROXY=",
	}}.Settings("/state/host")
	want := map[string]string{
		"HTTPS_PROXY": "http://proxy.test:3128", "no_proxy": ".test", "PIP_INDEX_URL": "https://py.mirror.test/simple",
		"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt", "NODE_EXTRA_CA_CERTS": "/opt/own.pem",
		"CARGO_REGISTRIES_OWN_INDEX": "sparse+https://rs.test/", "GOPROXY": "https://go.mirror.test", "npm_config_registry": "https://js.mirror.test",
	}
	if !maps.Equal(s.Env, want) {
		t.Errorf("env %v\nwant %v", s.Env, want)
	}
	files := map[string]string{
		"/etc/ssl/certs/ca-certificates.crt": filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"),
		"/opt/own.pem":                       filepath.Join(root, "opt/own.pem"),
	}
	if !maps.Equal(s.Files, files) {
		t.Errorf("files %v\nwant %v", s.Files, files)
	}
	if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, "PIP_FIND_LINKS") || !strings.Contains(notes, "/none.pem") {
		t.Errorf("notes %q", s.Notes)
	}
}

func TestHostFiles(t *testing.T) {
	for name, c := range map[string]struct {
		path, content, inBuild, want string
	}{
		"pip": {
			"etc/pip.conf", "# mine\n[global]\nindex-url = https://py.test/simple\nextra_index_url =\n    https://a.test\n    https://b.test\ntarget = /srv\nfind-links = /opt/wheels\n[install]\nuser = true\ntrusted-host = py.test\n",
			"/etc/pip.conf", "[global]\nindex-url = https://py.test/simple\nextra-index-url = \n    https://a.test\n    https://b.test\n[install]\ntrusted-host = py.test\n",
		},
		"npm": {
			"home/.npmrc", "; mine\nregistry=https://js.test/\n@team:registry=https://team.test/\n//team.test/:_authToken=hush\n_password=hush\nprefix=/srv\nstrict-ssl=false\ncache=/x\n",
			"/etc/npmrc", "registry=https://js.test/\n@team:registry=https://team.test/\nstrict-ssl=false\n",
		},
		"cargo": {
			"home/.cargo/config.toml", "net.retry = 3\n[source.crates-io]\nreplace-with = \"mirror\"\n[source.mirror]\nregistry = \"sparse+https://rs.test/\"\n[build]\ntarget-dir = \"/x\"\n[registries.own]\nindex = \"https://own.test\"\ntoken = \"hush\"\n[target.x86_64-unknown-linux-gnu]\nlinker = \"clang\"\n",
			"/.cargo/config.toml", "net.retry = 3\n[source.crates-io]\nreplace-with = \"mirror\"\n[source.mirror]\nregistry = \"sparse+https://rs.test/\"\n[registries.own]\nindex = \"https://own.test\"\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := Host{Root: machine(t, map[string]string{c.path: c.content}), Home: "/home"}.Settings(dir)
			if err := s.Write(); err != nil {
				t.Fatal(err)
			}
			host, ok := s.Files[c.inBuild]
			if !ok {
				t.Fatalf("%s is not handed on: %v", c.inBuild, s.Files)
			}
			got, err := os.ReadFile(host)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if info, err := os.Stat(host); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, mode %v: it may hold a password", err, info.Mode())
			}
		})
	}
}

func TestHostWithoutSettingsHandsOnNothing(t *testing.T) {
	s := Host{Root: machine(t, map[string]string{"etc/pip.conf": "[global]\nuser = true\n"}), Home: "/root"}.Settings(t.TempDir())
	if len(s.Env) != 0 || len(s.Files) != 0 || s.Mirror != "" {
		t.Errorf("handed on %v, %v, %q", s.Env, s.Files, s.Mirror)
	}
}

func TestHostOwnAuthorities(t *testing.T) {
	s := Host{Root: machine(t, map[string]string{"etc/ssl/certs/ca-certificates.crt": "CA", "usr/local/share/ca-certificates/own.crt": "OWN"})}.Settings(t.TempDir())
	if s.Files[caBundle] == "" {
		t.Errorf("the bundle with the operator's own authority is not handed on: %v", s.Files)
	}
}

func TestHostApt(t *testing.T) {
	debian := "ID=debian\nVERSION_CODENAME=bookworm\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"deb822":    {map[string]string{"etc/os-release": debian, "etc/apt/sources.list.d/debian.sources": "Types: deb\nURIs: http://deb.test/debian-security\nSuites: bookworm-security\n\nTypes: deb\nURIs: http://deb.test/debian\nSuites: bookworm bookworm-updates\n"}, "http://deb.test/debian"},
		"one line":  {map[string]string{"etc/os-release": debian, "etc/apt/sources.list": "# deb http://x bookworm main\ndeb [signed-by=/k arch=amd64] http://deb.test/debian bookworm main\n"}, "http://deb.test/debian"},
		"no Debian": {map[string]string{"etc/os-release": "ID=ubuntu\nVERSION_CODENAME=noble\n", "etc/apt/sources.list": "deb http://ubuntu.test/ubuntu noble main\n"}, ""},
	} {
		dir := t.TempDir()
		s := Host{Root: machine(t, c.files), Apt: []string{
			`Acquire "";`, `Acquire::http::Proxy "http://proxy.test:3142";`, `Acquire::Check-Valid-Until "false";`,
			`Acquire::https::SslKey "/etc/key.pem";`, `Acquire::Languages "none";`, `Acquire::Retries "5";`,
		}}.Settings(dir)
		if s.Mirror != c.want {
			t.Errorf("%s: mirror %q, want %q", name, s.Mirror, c.want)
		}
		if err := s.Write(); err != nil {
			t.Fatal(err)
		}
		conf, err := os.ReadFile(filepath.Join(dir, "apt", "apt.conf"))
		want := "Acquire::http::Proxy \"http://proxy.test:3142\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Retries \"5\";\n"
		if err != nil || string(conf) != want {
			t.Errorf("%s: apt.conf %q (%v), want %q", name, conf, err, want)
		}
		if s.Files["/etc/apt/apt.conf.d/90-operator"] == "" {
			t.Errorf("%s: builds do not get it: %v", name, slices.Sorted(maps.Keys(s.Files)))
		}
	}
}
