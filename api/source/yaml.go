package source

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/leapcell/leapcell"
)

// ConfigFile is the name of the optional settings file in a source's root directory.
const ConfigFile = "leapcell.yaml"

const maxConfigBytes = 64 << 10

// settingsOf finds and reads the settings file among entries.
func settingsOf(entries []entry) (leapcell.Settings, error) {
	for _, name := range []string{ConfigFile, "leapcell.yml"} {
		i := slices.IndexFunc(entries, func(e entry) bool { return e.name == name })
		if i < 0 {
			continue
		}
		if entries[i].open == nil {
			return leapcell.Settings{}, leapcell.Errorf(leapcell.CodeInvalid, "%s must be a file", name)
		}
		in, err := entries[i].open()
		if err != nil {
			return leapcell.Settings{}, leapcell.Wrap(leapcell.CodeInternal, err, name+" could not be read")
		}
		defer in.Close()
		b, err := io.ReadAll(io.LimitReader(in, maxConfigBytes+1))
		if err != nil {
			return leapcell.Settings{}, leapcell.Wrap(leapcell.CodeInternal, err, name+" could not be read")
		}
		if len(b) > maxConfigBytes {
			return leapcell.Settings{}, leapcell.Errorf(leapcell.CodeInvalid, "%s is over %d KB", name, maxConfigBytes>>10)
		}
		return ParseSettings(name, b)
	}
	return leapcell.Settings{}, nil
}

// fields says how each key of the file is read into the settings.
var fields = []struct {
	key  string
	read func(*leapcell.Settings, string) error
}{
	{"runtime", text(func(s *leapcell.Settings) *string { return &s.Runtime })},
	{"buildCommand", text(func(s *leapcell.Settings) *string { return &s.BuildCommand })},
	{"startCommand", text(func(s *leapcell.Settings) *string { return &s.StartCommand })},
	{"port", number(func(s *leapcell.Settings) *int { return &s.Port })},
	{"memory", memory},
	{"mode", mode},
	{"minInstances", number(func(s *leapcell.Settings) *int { return &s.MinInstances })},
	{"maxInstances", number(func(s *leapcell.Settings) *int { return &s.MaxInstances })},
	{"concurrency", number(func(s *leapcell.Settings) *int { return &s.Concurrency })},
	{"startTimeout", duration(func(s *leapcell.Settings) *leapcell.Duration { return &s.StartTimeout })},
	{"requestTimeout", duration(func(s *leapcell.Settings) *leapcell.Duration { return &s.RequestTimeout })},
	{"dormantAfter", duration(func(s *leapcell.Settings) *leapcell.Duration { return &s.DormantAfter })},
	{"dockerfile", text(func(s *leapcell.Settings) *string { return &s.Dockerfile })},
	{"static", text(func(s *leapcell.Settings) *string { return &s.Static })},
	{"staticFallback", text(func(s *leapcell.Settings) *string { return &s.StaticFallback })},
	{"scaleInDelay", duration(func(s *leapcell.Settings) *leapcell.Duration { return &s.ScaleInDelay })},
}

// lists are the keys that have names and values of their own below them.
var lists = []struct {
	key   string
	field func(*leapcell.Settings) *map[string]string
}{
	{"buildArgs", func(s *leapcell.Settings) *map[string]string { return &s.BuildArgs }},
}

// ParseSettings reads a settings file; name is what errors call it. They say the line and
// the key.
func ParseSettings(name string, b []byte) (leapcell.Settings, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return leapcell.Settings{}, syntaxError(name, err)
	}
	if len(doc.Content) == 0 {
		return leapcell.Settings{}, nil // empty, or comments only
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return leapcell.Settings{}, nil
	}
	if top.Kind != yaml.MappingNode {
		return leapcell.Settings{}, at(name, top, "settings must be written as \"key: value\", one a line")
	}
	var out leapcell.Settings
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if line, ok := seen[key.Value]; ok {
			return leapcell.Settings{}, at(name, key, "%q is already set on line %d", key.Value, line)
		}
		seen[key.Value] = key.Line
		if err := readField(name, &out, key, value); err != nil {
			return leapcell.Settings{}, err
		}
	}
	return out, nil
}

func readField(name string, out *leapcell.Settings, key, value *yaml.Node) error {
	for _, f := range fields {
		if f.key != key.Value {
			continue
		}
		if value.Kind != yaml.ScalarNode {
			return at(name, key, "%s must be a single value", key.Value)
		}
		if value.Tag == "!!null" {
			return nil // "port:" without a value says nothing
		}
		if err := f.read(out, value.Value); err != nil {
			return at(name, key, "%s: %s", key.Value, err)
		}
		return validAt(name, out, key)
	}
	for _, l := range lists {
		if l.key == key.Value {
			return readList(name, out, l.field(out), key, value)
		}
	}
	if near := nearest(key.Value); near != "" {
		return at(name, key, "unknown key %q (did you mean %s?)", key.Value, near)
	}
	return at(name, key, "unknown key %q; the keys are %s", key.Value, strings.Join(keys(), ", "))
}

// validAt checks what was read so far: one field at a time, so that the error can name its line.
func validAt(name string, s *leapcell.Settings, key *yaml.Node) error {
	if err := s.Validate(); err != nil {
		return at(name, key, "%s", leapcell.ErrorMessage(err))
	}
	return nil
}

func readList(name string, out *leapcell.Settings, field *map[string]string, key, value *yaml.Node) error {
	if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
		return nil
	}
	if value.Kind != yaml.MappingNode {
		return at(name, key, "%s must be names with their values, each on a line of its own: \"  NAME: value\"", key.Value)
	}
	found := map[string]string{}
	for i := 0; i+1 < len(value.Content); i += 2 {
		n, v := value.Content[i], value.Content[i+1]
		if v.Kind != yaml.ScalarNode || n.Kind != yaml.ScalarNode {
			return at(name, n, "%s: %q must have a single value", key.Value, n.Value)
		}
		if _, twice := found[n.Value]; twice {
			return at(name, n, "%s: %q is set twice", key.Value, n.Value)
		}
		found[n.Value] = v.Value
		if v.Tag == "!!null" {
			found[n.Value] = "" // as `docker build --build-arg NAME=`
		}
		*field = found
		if err := validAt(name, out, n); err != nil {
			return err
		}
	}
	return nil
}

func keys() []string {
	var out []string
	for _, f := range fields {
		out = append(out, f.key)
	}
	for _, l := range lists {
		out = append(out, l.key)
	}
	return out
}

func at(name string, n *yaml.Node, format string, args ...any) error {
	return leapcell.Errorf(leapcell.CodeInvalid, "%s line %d: %s", name, n.Line, fmt.Sprintf(format, args...))
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func syntaxError(name string, err error) error {
	message := err.Error()
	if found := yamlLine.FindStringSubmatch(message); found != nil {
		rest := strings.TrimPrefix(message, found[0])
		if found[1] != "" {
			return leapcell.Errorf(leapcell.CodeInvalid, "%s line %s: %s", name, found[1], rest)
		}
		message = rest
		// The parser leaves out the line when it is the first; only the reader below it,
		// which sees bytes and not lines, has none to tell.
		if !strings.Contains(rest, "control characters") && !strings.Contains(rest, "UTF") {
			return leapcell.Errorf(leapcell.CodeInvalid, "%s line 1: %s", name, rest)
		}
	}
	return leapcell.Errorf(leapcell.CodeInvalid, "%s: %s", name, message)
}

func text(field func(*leapcell.Settings) *string) func(*leapcell.Settings, string) error {
	return func(s *leapcell.Settings, v string) error {
		*field(s) = strings.TrimSpace(v)
		return nil
	}
}

func number(field func(*leapcell.Settings) *int) func(*leapcell.Settings, string) error {
	return func(s *leapcell.Settings, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n <= 0 {
			return fmt.Errorf("%q is not a whole number above 0", v)
		}
		*field(s) = n
		return nil
	}
}

func duration(field func(*leapcell.Settings) *leapcell.Duration) func(*leapcell.Settings, string) error {
	return func(s *leapcell.Settings, v string) error {
		if err := field(s).UnmarshalText([]byte(v)); err != nil {
			return err
		}
		if *field(s) <= 0 {
			return fmt.Errorf("%q is not a duration above 0", v)
		}
		return nil
	}
}

func mode(s *leapcell.Settings, v string) error {
	s.Mode = leapcell.Mode(v)
	if v == "" {
		return errors.New("it must be serverless or persistent")
	}
	return nil
}

var memorySize = regexp.MustCompile(`(?i)^\s*(\d{1,6})\s*(m|mb|mib|g|gb|gib)?\s*$`)

// memory reads "512mb", "1gb" or plain megabytes.
func memory(s *leapcell.Settings, v string) error {
	found := memorySize.FindStringSubmatch(v)
	if found == nil {
		return fmt.Errorf("%q is not a memory size such as 512mb", v)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a memory size such as 512mb", v)
	}
	if strings.HasPrefix(strings.ToLower(found[2]), "g") {
		n *= 1024
	}
	s.MemoryMB = n
	return nil
}

// nearest is the key that somebody who wrote given most likely meant, or "".
func nearest(given string) string {
	best, least := "", len(given)/3+2
	for _, key := range keys() {
		if d := distance(strings.ToLower(given), strings.ToLower(key)); d < least {
			best, least = key, d
		}
	}
	return best
}

// distance is how many letters must be put in, left out or changed to get from a to b.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
