package platform

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// caBundle is where Debian keeps the certificate authorities it trusts, on this machine and
// in the images that builds run in.
const caBundle = "/etc/ssl/certs/ca-certificates.crt"

// Host is this machine as its package managers see it. What installs on the host is to
// install in a build: registries, mirrors, proxies and certificate authorities are handed
// on; credentials, and settings about where things are put, are not.
type Host struct {
	Root    string            // "/" but in tests
	Home    string            // of the operator
	Environ []string          // of the command that starts the platform
	Go      map[string]string // from go env
	Apt     []string          // lines of apt's configuration: Acquire::… "…";
}

// BuildSettings is what a build gets: variables, and files that are mounted read-only.
type BuildSettings struct {
	Env   map[string]string
	Files map[string]string // path in the build -> path on this machine
	Notes []string          // what could not be handed on, for the operator
	// Mirror is the Debian mirror of this machine, for base images; "" when it is no Debian.
	Mirror string

	dir      string
	contents map[string][]byte // to write below dir
}

// Variables that are handed on as they are. A name ending in * stands for all that begin so.
var handedOn = []string{
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
	"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_PROXY",
	"PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT", "PIP_RETRIES", "PIP_DISABLE_PIP_VERSION_CHECK",
	"UV_INDEX_URL", "UV_DEFAULT_INDEX",
	"npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_strict_ssl", "NPM_CONFIG_STRICT_SSL",
	"npm_config_proxy", "NPM_CONFIG_PROXY", "npm_config_https_proxy", "NPM_CONFIG_HTTPS_PROXY",
	"npm_config_noproxy", "NPM_CONFIG_NOPROXY",
	"CARGO_REGISTRY_DEFAULT", "CARGO_REGISTRIES_*", "CARGO_SOURCE_*", "CARGO_HTTP_PROXY", "CARGO_HTTP_TIMEOUT",
	"CARGO_HTTP_MULTIPLEXING", "CARGO_HTTP_CHECK_REVOKE", "CARGO_NET_*", "RUSTUP_DIST_SERVER",
}

// Variables that name a file of certificate authorities: the file goes along.
var caVariables = []string{
	"SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO",
	"CARGO_HTTP_CAINFO", "npm_config_cafile", "NPM_CONFIG_CAFILE",
}

var goVariables = []string{"GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOINSECURE"}

// Settings gathers them; files that had to be rewritten will be in dir.
func (h Host) Settings(dir string) BuildSettings {
	s := BuildSettings{Env: map[string]string{}, Files: map[string]string{}, dir: dir, contents: map[string][]byte{}}
	h.environment(&s)
	h.pip(&s)
	h.npm(&s)
	h.cargo(&s)
	h.apt(&s)
	// The bundle goes along whenever something names it, or the operator added authorities.
	own, _ := filepath.Glob(filepath.Join(h.Root, "usr/local/share/ca-certificates/*.crt"))
	if len(own) > 0 {
		h.addCA(&s, caBundle)
	}
	return s
}

func (h Host) environment(s *BuildSettings) {
	for _, entry := range h.Environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case value == "":
		case slices.Contains(caVariables, name):
			if path := h.addCA(s, value); path != "" {
				s.Env[name] = path
			}
		case !matches(handedOn, name) || secretName.MatchString(name):
		case strings.HasPrefix(value, "/") || strings.HasPrefix(value, "file:"):
			s.Notes = append(s.Notes, fmt.Sprintf("builds do not see %s: it names a folder of this machine", name))
		default:
			s.Env[name] = value
		}
	}
	for _, name := range goVariables {
		if v := h.Go[name]; v != "" {
			s.Env[name] = v
		}
	}
}

var secretName = regexp.MustCompile(`(?i)(token|password|secret|credential)`)

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, all := strings.CutSuffix(p, "*")
		return p == name || all && strings.HasPrefix(name, prefix)
	})
}

// addCA makes a certificate file available under the path it gives, "" if there is none.
func (h Host) addCA(s *BuildSettings, path string) string {
	host := filepath.Join(h.Root, path)
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		s.Notes = append(s.Notes, fmt.Sprintf("builds do not see the certificates in %s: %v", path, err))
		return ""
	}
	if info, err := os.Stat(real); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	s.Files[path] = real
	return path
}

var (
	pipKeys   = []string{"index-url", "extra-index-url", "trusted-host", "no-index", "find-links", "proxy", "timeout", "retries", "cert", "disable-pip-version-check"}
	npmKeys   = []string{"registry", "cafile", "ca", "strict-ssl", "proxy", "https-proxy", "noproxy", "fetch-timeout", "fetch-retries"}
	cargoKeys = []string{"source", "registries", "registry", "http", "net"}
)

// pip merges the operator's files; the last one of a key wins, as it does for pip.
func (h Host) pip(s *BuildSettings) {
	var out bytes.Buffer
	for _, path := range []string{"/etc/pip.conf", "/etc/xdg/pip/pip.conf", h.Home + "/.pip/pip.conf", h.Home + "/.config/pip/pip.conf", h.variable("PIP_CONFIG_FILE")} {
		keep := false
		for line := range h.lines(path) {
			trimmed := strings.TrimSpace(line)
			if strings.HasPrefix(trimmed, "[") {
				keep = false
				fmt.Fprintln(&out, trimmed)
				continue
			}
			if line != "" && (line[0] == ' ' || line[0] == '\t') { // continues the value above
				if keep && !strings.HasPrefix(trimmed, "/") {
					fmt.Fprintln(&out, line)
				}
				continue
			}
			key, value, _ := strings.Cut(trimmed, "=")
			key, value = strings.ReplaceAll(strings.TrimSpace(key), "_", "-"), strings.TrimSpace(value)
			if keep = slices.Contains(pipKeys, key) && h.usable(s, key == "cert", value); keep {
				fmt.Fprintf(&out, "%s = %s\n", key, value)
			}
		}
	}
	s.add("pip.conf", "/etc/pip.conf", out.Bytes())
}

// npm keeps registries, also those of single scopes, but no credentials. A key of a later
// file replaces that of an earlier one.
func (h Host) npm(s *BuildSettings) {
	var order []string
	values := map[string]string{}
	for _, path := range []string{"/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc", h.variable("NPM_CONFIG_GLOBALCONFIG"), h.Home + "/.npmrc", h.variable("NPM_CONFIG_USERCONFIG")} {
		for line := range h.lines(path) {
			key, value, ok := strings.Cut(line, "=")
			key, value = strings.TrimSpace(key), strings.TrimSpace(value)
			scoped := strings.HasPrefix(key, "@") && strings.HasSuffix(key, ":registry")
			if !ok || !scoped && !slices.Contains(npmKeys, key) || !h.usable(s, key == "cafile", value) {
				continue
			}
			if _, known := values[key]; !known {
				order = append(order, key)
			}
			values[key] = value
		}
	}
	var out bytes.Buffer
	for _, key := range order {
		fmt.Fprintf(&out, "%s=%s\n", key, values[key])
	}
	if s.add("npmrc", "/etc/npmrc", out.Bytes()) {
		s.Env["NPM_CONFIG_GLOBALCONFIG"] = "/etc/npmrc" // npm looks elsewhere when it was installed elsewhere
	}
}

var tomlSection = regexp.MustCompile(`^\[+\s*"?([A-Za-z0-9_-]+)`)

// cargo keeps the sections about where crates come from.
func (h Host) cargo(s *BuildSettings) {
	var out bytes.Buffer
	folder := h.variable("CARGO_HOME")
	if folder == "" {
		folder = h.Home + "/.cargo"
	}
	for _, path := range []string{folder + "/config", folder + "/config.toml"} {
		keep, top := false, true
		for line := range h.lines(path) {
			trimmed := strings.TrimSpace(line)
			if m := tomlSection.FindStringSubmatch(trimmed); m != nil && strings.HasPrefix(trimmed, "[") && !strings.Contains(trimmed, "=") {
				top, keep = false, slices.Contains(cargoKeys, m[1])
				if keep {
					fmt.Fprintln(&out, trimmed)
				}
				continue
			}
			key, value, _ := strings.Cut(trimmed, "=")
			key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"'`)
			first, _, _ := strings.Cut(key, ".")
			wanted := keep || top && slices.Contains(cargoKeys, first)
			ca := strings.HasSuffix(key, "cainfo")
			if wanted && !secretName.MatchString(key) && (value == "" || h.usable(s, ca, value)) {
				fmt.Fprintln(&out, line)
			}
		}
	}
	// Cargo looks for it in every folder above the one it works in.
	s.add("cargo.toml", "/.cargo/config.toml", out.Bytes())
}

var (
	aptSetting = regexp.MustCompile(`^(Acquire::(?:https?|ftp|Check-[A-Za-z-]+|Retries|ForceIPv[46])[^ ]*) "(.*)";$`)
	aptSecret  = regexp.MustCompile(`(?i)::Ssl(Cert|Key)$`)
)

// apt hands on proxies, timeouts and checks, and finds the mirror.
func (h Host) apt(s *BuildSettings) {
	var out bytes.Buffer
	for _, line := range h.Apt {
		m := aptSetting.FindStringSubmatch(line)
		if m == nil || m[2] == "" || aptSecret.MatchString(m[1]) {
			continue
		}
		if h.usable(s, strings.HasSuffix(m[1], "CAInfo"), m[2]) {
			fmt.Fprintln(&out, line)
		}
	}
	s.add("apt/apt.conf", "/etc/apt/apt.conf.d/90-operator", out.Bytes())
	if s.Mirror = h.mirror(); s.Mirror != "" {
		s.contents["apt/mirror"] = []byte(s.Mirror + "\n")
	}
}

// mirror is where this machine's own release comes from, if it is a Debian.
func (h Host) mirror() string {
	var id, codename string
	for line := range h.lines("/etc/os-release") {
		key, value, _ := strings.Cut(line, "=")
		switch value = strings.Trim(value, `"`); key {
		case "ID":
			id = value
		case "VERSION_CODENAME":
			codename = value
		}
	}
	if id != "debian" {
		return ""
	}
	deb822, _ := filepath.Glob(filepath.Join(h.Root, "etc/apt/sources.list.d/*.sources"))
	for _, path := range deb822 {
		uri := ""
		for line := range h.lines(strings.TrimPrefix(path, strings.TrimSuffix(h.Root, "/"))) {
			key, value, _ := strings.Cut(line, ":")
			fields := strings.Fields(value)
			switch {
			case key == "URIs" && len(fields) > 0:
				uri = fields[0]
			case key == "Suites" && uri != "" && slices.Contains(fields, codename):
				return uri
			}
		}
	}
	oneLine, _ := filepath.Glob(filepath.Join(h.Root, "etc/apt/sources.list.d/*.list"))
	for _, path := range append([]string{filepath.Join(h.Root, "etc/apt/sources.list")}, oneLine...) {
		for line := range h.lines(strings.TrimPrefix(path, strings.TrimSuffix(h.Root, "/"))) {
			fields := strings.Fields(regexp.MustCompile(`\[[^\]]*\]`).ReplaceAllString(line, ""))
			if len(fields) >= 4 && fields[0] == "deb" && fields[2] == codename {
				return fields[1]
			}
		}
	}
	return ""
}

// usable reports whether a value means the same in a build. A certificate file does, as it
// is taken along; another path of this machine does not.
func (h Host) usable(s *BuildSettings, ca bool, value string) bool {
	if ca {
		return h.addCA(s, value) != ""
	}
	return !strings.HasPrefix(value, "/") && !strings.HasPrefix(value, "file:")
}

func (h Host) variable(name string) string {
	for _, entry := range h.Environ {
		if k, v, _ := strings.Cut(entry, "="); strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}

// lines yields the lines of a file without comments; none if it cannot be read.
func (h Host) lines(path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if path == "" {
			return
		}
		b, err := os.ReadFile(filepath.Join(h.Root, path))
		if err != nil {
			return
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			line = strings.TrimRight(line, " \t\r")
			if t := strings.TrimSpace(line); t == "" || t[0] == '#' || t[0] == ';' {
				continue
			}
			if !yield(line) {
				return
			}
		}
	}
}

// add mounts a file with this content, unless it says nothing.
func (s *BuildSettings) add(name, inBuild string, content []byte) bool {
	if !bytes.ContainsRune(content, '=') && !bytes.ContainsRune(content, '"') {
		return false
	}
	s.contents[name] = content
	s.Files[inBuild] = filepath.Join(s.dir, name)
	return true
}

// Write puts the rewritten files into the folder they were made for. Addresses of mirrors
// may hold a password, so only root reads them.
func (s BuildSettings) Write() error {
	if err := os.MkdirAll(filepath.Join(s.dir, "apt"), 0o755); err != nil {
		return fmt.Errorf("package-manager settings: %w", err)
	}
	for name, content := range s.contents {
		if err := writeFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			return fmt.Errorf("package-manager settings: %w", err)
		}
	}
	return nil
}

// hostSettings reads this machine.
func (p *Platform) hostSettings(ctx context.Context) BuildSettings {
	h := Host{Root: "/", Home: p.cfg.Home, Environ: p.cfg.Environ}
	goEnv := exec.CommandContext(ctx, "go", append([]string{"env", "-json", "-changed"}, goVariables...)...)
	goEnv.Env = p.cfg.Environ
	if out, err := goEnv.Output(); err == nil { // without Go there is nothing to hand on
		_ = json.Unmarshal(out, &h.Go)
	}
	if out, err := exec.CommandContext(ctx, "apt-config", "dump", "Acquire").Output(); err == nil {
		h.Apt = strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	return h.Settings(p.cfg.path("host"))
}
