package source

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestParseSettings(t *testing.T) {
	got, err := ParseSettings(ConfigFile, []byte(`# how we run
runtime: python
buildCommand: |
  apt-get update
  pip install -r requirements.txt
startCommand: gunicorn -w 1 -b :8080 app:app
port: 9000
memory: 512mb
mode: persistent
minInstances: 2
maxInstances: 4
concurrency: 10
startTimeout: 20s
requestTimeout: 1m
dormantAfter: 1h
scaleInDelay: 30s
dockerfile: deploy/Dockerfile.prod
buildArgs:
  VERSION: 1.20
  DEBUG: true
  NOTHING:
`))
	if err != nil {
		t.Fatal(err)
	}
	want := leapcell.Settings{
		Runtime: "python", BuildCommand: "apt-get update\npip install -r requirements.txt",
		StartCommand: "gunicorn -w 1 -b :8080 app:app", Port: 9000, MemoryMB: 512, Mode: leapcell.Persistent,
		MinInstances: 2, MaxInstances: 4, Concurrency: 10,
		StartTimeout: leapcell.Duration(20 * time.Second), RequestTimeout: leapcell.Duration(time.Minute),
		DormantAfter: leapcell.Duration(time.Hour), ScaleInDelay: leapcell.Duration(30 * time.Second),
		Dockerfile: "deploy/Dockerfile.prod", BuildArgs: map[string]string{"VERSION": "1.20", "DEBUG": "true", "NOTHING": ""},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestParseSettingsSizes(t *testing.T) {
	for given, want := range map[string]int{"512mb": 512, "512 MB": 512, "1gb": 1024, "2G": 2048, "256": 256, "128MiB": 128} {
		got, err := ParseSettings(ConfigFile, []byte("memory: "+given))
		if err != nil || got.MemoryMB != want {
			t.Errorf("memory %q: %d, %v; want %d", given, got.MemoryMB, err, want)
		}
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "port:\n", "buildArgs:\n"} {
		if got, err := ParseSettings(ConfigFile, []byte(empty)); err != nil || !got.IsZero() {
			t.Errorf("%q: %+v, %v", empty, got, err)
		}
	}
}

func TestParseSettingsErrors(t *testing.T) {
	for given, want := range map[string]string{
		"runtime: go\nport: 80\nstartComand: x": `leapcell.yaml line 3: unknown key "startComand" (did you mean startCommand?)`,
		"Port: 80":                              `leapcell.yaml line 1: unknown key "Port" (did you mean port?)`,
		"zzzzzzzzzzzz: 1":                       `leapcell.yaml line 1: unknown key "zzzzzzzzzzzz"; the keys are runtime, buildCommand`,
		"runtime: go\nport: eighty":             `leapcell.yaml line 2: port: "eighty" is not a whole number above 0`,
		"port: 99999":                           `leapcell.yaml line 1: port is 99999: it must be from 1 to 65535`,
		"\nmemory: 64mb":                        `leapcell.yaml line 2: memory is 64: it must be from 128 to 7076`,
		"memory: much":                          `leapcell.yaml line 1: memory: "much" is not a memory size such as 512mb`,
		"mode: sometimes":                       `leapcell.yaml line 1: mode is "sometimes": it must be serverless or persistent`,
		"startTimeout: 10":                      `leapcell.yaml line 1: startTimeout: "10" is not a duration such as 90s or 5m`,
		"port: [1]":                             `leapcell.yaml line 1: port must be a single value`,
		"port: 1\nport: 2":                      `leapcell.yaml line 2: "port" is already set on line 1`,
		"buildArgs: A=1":                        `leapcell.yaml line 1: buildArgs must be names with their values, each on a line of its own`,
		"buildArgs:\n  A: 1\n  A: 2":            `leapcell.yaml line 3: buildArgs: "A" is set twice`,
		"buildArgs:\n  A: 1\n  B: [1]":          `leapcell.yaml line 3: buildArgs: "B" must have a single value`,
		"buildArgs:\n  A: 1\n  B-C: 1":          `leapcell.yaml line 3: buildArgs has "B-C": names of ARG have`,
		"buildargs: {A: 1}":                     `leapcell.yaml line 1: unknown key "buildargs" (did you mean buildArgs?)`,
		"- a":                                   `leapcell.yaml line 1: settings must be written as "key: value"`,
		"a: b: c":                               `leapcell.yaml line 1: mapping values are not allowed`,
		"runtime: go\n\tport: 1":                `leapcell.yaml line 2: found`,
	} {
		_, err := ParseSettings(ConfigFile, []byte(given))
		if leapcell.ErrorCode(err) != leapcell.CodeInvalid || !strings.Contains(leapcell.ErrorMessage(err), want) {
			t.Errorf("%q: %v\nwant %s", given, err, want)
		}
	}
}

// Whatever is in the file, what comes out can be used or the error says where.
func FuzzSettings(f *testing.F) {
	f.Add("runtime: go\nport: 80")
	f.Add("memory: 1gb\n? x\n: y")
	f.Add("&a [*a]")
	f.Add("buildArgs: {A: 1, B: null}")
	f.Fuzz(func(t *testing.T, given string) {
		got, err := ParseSettings(ConfigFile, []byte(given))
		if err != nil {
			if !strings.HasPrefix(leapcell.ErrorMessage(err), ConfigFile) {
				t.Errorf("%q: the error does not name the file: %v", given, err)
			}
			return
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%q: accepted, but %v", given, err)
		}
	})
}
