package leapcell_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestSettingsOverTakesWhatIsSet(t *testing.T) {
	base := leapcell.DefaultSettings()
	base.Runtime = "python"
	got := leapcell.Settings{MemoryMB: 512, StartTimeout: leapcell.Duration(time.Second)}.Over(base)
	want := base
	want.MemoryMB, want.StartTimeout = 512, leapcell.Duration(time.Second)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if again := (leapcell.Settings{}).Over(got); !reflect.DeepEqual(again, got) {
		t.Errorf("nothing set changed something: %+v", again)
	}
}

// A field that is added to Settings but forgotten in Over would be lost without a word.
func TestSettingsOverKnowsEveryField(t *testing.T) {
	var full leapcell.Settings
	v := reflect.ValueOf(&full).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"x"}))
		case reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"x": "y"}))
		default:
			f.SetInt(int64(i + 1))
		}
	}
	if got := full.Over(leapcell.Settings{}); !reflect.DeepEqual(got, full) {
		t.Errorf("got  %+v\nwant %+v", got, full)
	}
}

func TestDefaultSettingsAreValid(t *testing.T) {
	if err := leapcell.DefaultSettings().Validate(); err != nil {
		t.Error(err)
	}
}

func TestSettingsValidate(t *testing.T) {
	seconds := func(n float64) leapcell.Duration { return leapcell.Duration(n * float64(time.Second)) }
	for name, c := range map[string]struct {
		s    leapcell.Settings
		says []string // nil: valid
	}{
		"nothing set":        {leapcell.Settings{}, nil},
		"smallest":           {leapcell.Settings{MemoryMB: 128, Port: 1}, nil},
		"largest":            {leapcell.Settings{MemoryMB: 7076, Port: 65535, Concurrency: 1000}, nil},
		"ignored requests":   {leapcell.Settings{IgnorePaths: []string{"/healthz", "/bots/*"}, IgnoreAgents: []string{"Bot"}}, nil},
		"everything ignored": {leapcell.Settings{IgnorePaths: []string{"/*"}}, []string{"ignorePaths", "/*"}},
		"no path":            {leapcell.Settings{IgnorePaths: []string{"healthz"}}, []string{"ignorePaths", "healthz"}},
		"two wildcards":      {leapcell.Settings{IgnorePaths: []string{"/a*b*"}}, []string{"ignorePaths", "/a*b*"}},
		"any agent":          {leapcell.Settings{IgnoreAgents: []string{"M"}}, []string{"ignoreAgents", "M"}},
		"too many ignored":   {leapcell.Settings{IgnorePaths: make([]string, 21)}, []string{"ignorePaths", "21", "20"}},
		"memory too small":   {leapcell.Settings{MemoryMB: 127}, []string{"memory", "127", "128", "7076"}},
		"memory too large":   {leapcell.Settings{MemoryMB: 7077}, []string{"memory", "7077", "7076"}},
		"port too large":     {leapcell.Settings{Port: 65536}, []string{"port", "65536"}},
		"port negative":      {leapcell.Settings{Port: -1}, []string{"port", "-1"}},
		"mode":               {leapcell.Settings{Mode: "lazy"}, []string{"mode", "lazy", "serverless", "persistent"}},
		"concurrency":        {leapcell.Settings{Concurrency: 1001}, []string{"concurrency", "1001", "1000"}},
		"start timeout":      {leapcell.Settings{StartTimeout: seconds(61)}, []string{"startTimeout", "1m1s", "1m0s"}},
		"request timeout":    {leapcell.Settings{RequestTimeout: seconds(901)}, []string{"requestTimeout", "15m"}},
		"more min than max":  {leapcell.Settings{MinInstances: 3, MaxInstances: 2}, []string{"minInstances", "3", "2"}},
		"equal min and max":  {leapcell.Settings{MinInstances: 2, MaxInstances: 2}, nil},
		"dormancy too short": {leapcell.Settings{DormantAfter: seconds(0.5)}, []string{"dormantAfter", "500ms"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.s.Validate()
			if (err == nil) != (c.says == nil) {
				t.Fatalf("got %v", err)
			}
			if err != nil && leapcell.ErrorCode(err) != leapcell.CodeInvalid {
				t.Errorf("code is %s", leapcell.ErrorCode(err))
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

func TestValidateName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "python": true, "my-app2": true, strings.Repeat("a", 32): true,
		"": false, "2app": false, "-a": false, "a-": false, "a--b": false, "A": false, "a_b": false,
		"a.b": false, strings.Repeat("a", 33): false, "é": false, "a\n": false,
	} {
		if err := leapcell.ValidateName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestValidateEnvNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"A": true, "_a9": true, "PATH_2": true,
		"": false, "9A": false, "A-B": false, "A B": false, "Ä": false, "A=B": false, "A\n": false,
	} {
		if err := leapcell.ValidateEnv(map[string]string{name: "v"}); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestValidateEnvSize(t *testing.T) {
	exact := map[string]string{"A": strings.Repeat("x", 1000), "BC": strings.Repeat("y", leapcell.MaxEnvBytes-1003)}
	if err := leapcell.ValidateEnv(exact); err != nil {
		t.Errorf("%d bytes: %v", leapcell.MaxEnvBytes, err)
	}
	exact["A"] += "x"
	err := leapcell.ValidateEnv(exact)
	if leapcell.ErrorCode(err) != leapcell.CodeUnprocessable || !strings.Contains(err.Error(), "3073") {
		t.Errorf("one byte more: %v", err)
	}
}

func TestValidateEnvValues(t *testing.T) {
	if err := leapcell.ValidateEnv(map[string]string{"A": "line\nline\t= ' \" $"}); err != nil {
		t.Errorf("any text is a value: %v", err)
	}
	err := leapcell.ValidateEnv(map[string]string{"A": "secret\x00"})
	if leapcell.ErrorCode(err) != leapcell.CodeInvalid || strings.Contains(err.Error(), "secret") {
		t.Errorf("a zero byte: %v; and the value must not be in the message", err)
	}
}

func TestDurationInJSON(t *testing.T) {
	b, err := json.Marshal(leapcell.Settings{StartTimeout: leapcell.Duration(90 * time.Second)})
	if err != nil || string(b) != `{"startTimeout":"1m30s"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var s leapcell.Settings
	if err := json.Unmarshal([]byte(`{"startTimeout":"1.5s"}`), &s); err != nil || s.StartTimeout.String() != "1.5s" {
		t.Errorf("%v, %v", s.StartTimeout, err)
	}
	for _, bad := range []string{`{"startTimeout":"soon"}`, `{"startTimeout":10}`} {
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s was read as %v", bad, s.StartTimeout)
		}
	}
	if err := new(leapcell.Duration).UnmarshalText([]byte("soon")); err == nil || !strings.Contains(err.Error(), `"soon"`) {
		t.Errorf("the message does not say what was wrong: %v", err)
	}
}

func TestJobIDs(t *testing.T) {
	if got := leapcell.JobID("python", 1); got != "python-1" {
		t.Error(got)
	}
	if got := leapcell.BuildJobID("python", 1); got != "build-python-1" {
		t.Error(got)
	}
}
