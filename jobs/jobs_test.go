package jobs

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

var update = flag.Bool("update", false, "write the golden files anew")

func sample() (leapcell.Service, leapcell.Deployment) {
	svc := leapcell.Service{
		ID: "shop-default-a1b2c3d4", Name: "shop", Workspace: "default",
		Host: "shop-default-a1b2c3d4.leapcell.localhost",
		URL:  "http://shop-default-a1b2c3d4.leapcell.localhost:8080",
	}
	set := leapcell.Settings{
		Runtime: "python", MemoryMB: 512,
		BuildCommand: "pip install -r requirements.txt", StartCommand: "gunicorn -w 1 -b :8080 app:app",
	}
	dep := leapcell.Deployment{
		ID: "shop-7", ServiceID: svc.ID, Service: svc.Name, Number: 7,
		Settings: set.Over(leapcell.DefaultSettings()),
		Image:    "127.0.0.1:8401/shop-default-a1b2c3d4/app@sha256:" + strings.Repeat("0", 64),
	}
	return svc, dep
}

func TestGolden(t *testing.T) {
	svc, dep := sample()
	persistent := dep
	persistent.Settings.Mode = leapcell.Persistent
	persistent.Settings.MinInstances = 2
	for name, made := range map[string]any{
		"service":    Service(ServiceSpec{Namespace: "leapcell", Service: svc, Deployment: dep, Count: 1}),
		"persistent": Service(ServiceSpec{Namespace: "leapcell", Service: svc, Deployment: persistent, Count: 2}),
		"build": Build(BuildSpec{
			Namespace: "leapcell", Service: svc, Deployment: dep,
			SourceImage: "127.0.0.1:8401/shop-default-a1b2c3d4/source@sha256:" + strings.Repeat("1", 64),
			Output:      "127.0.0.1:8401/shop-default-a1b2c3d4/app:7",
			Caches:      []string{"/root/.cache/pip"}, Plan: leapcell.Plans()[0],
			RunImage: "127.0.0.1:8401/base/run@sha256:" + strings.Repeat("2", 64), Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC),
		}),
		"prefetch": Prefetch(PrefetchSpec{Namespace: "leapcell", Service: svc, Deployment: dep}),
		"forget":   Forget("leapcell", svc),
		"route":    Route("leapcell", svc, dep),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(compact(t, made), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("%s differs; run with -update when the change is meant. Now:\n%s", file, got)
			}
		})
	}
}

// compact drops what is not set, so that the golden files show only what we say.
func compact(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return withoutNull(out)
}

func withoutNull(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value == nil {
				delete(v, key)
				continue
			}
			v[key] = withoutNull(value)
		}
	case []any:
		for i := range v {
			v[i] = withoutNull(v[i])
		}
	}
	return v
}

// A field without a codec tag, or one that Config forgets, would reach the driver under no
// name at all.
func TestConfigHasEveryField(t *testing.T) {
	var full leapcell.TaskConfig
	v := reflect.ValueOf(&full).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Int:
			f.SetInt(1)
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"x"}))
		default:
			t.Fatalf("%s: Config knows no %s", v.Type().Field(i).Name, f.Kind())
		}
	}
	got := Config(full)
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("codec")
		if name == "" {
			t.Errorf("%s has no codec tag", v.Type().Field(i).Name)
		}
		if _, ok := got[name]; !ok {
			t.Errorf("%s is missing in %v", name, got)
		}
	}
	if len(got) != v.NumField() {
		t.Errorf("%d keys of %d fields: %v", len(got), v.NumField(), got)
	}
	if _, ok := got["mode"].(string); !ok {
		t.Errorf("mode is a %T: it must be a plain string", got["mode"])
	}
}

func TestKillTimeoutOutlastsRequests(t *testing.T) {
	svc, dep := sample()
	task := Service(ServiceSpec{Service: svc, Deployment: dep, Count: 1}).TaskGroups[0].Tasks[0]
	if least := time.Duration(dep.Settings.RequestTimeout) + leapcell.StopGrace; *task.KillTimeout <= least {
		t.Errorf("kill timeout is %s, requests and stop may take %s", *task.KillTimeout, least)
	}
}

// A build opens only what its service says, and one of a proposed change nothing: whoever proposes
// it writes the build command.
func TestBuildSecrets(t *testing.T) {
	svc, dep := sample()
	dep.Settings.BuildEnv = []string{"NPM_TOKEN"}
	build := func(trigger leapcell.Trigger) *api.Task {
		dep.Trigger = trigger
		return Build(BuildSpec{Service: svc, Deployment: dep, Plan: leapcell.Plans()[0]}).TaskGroups[0].Tasks[0]
	}
	for _, trigger := range []leapcell.Trigger{leapcell.Manual, leapcell.Push, leapcell.Redeploy} {
		task := build(trigger)
		if task.Config["env_path"] != leapcell.EnvPrefix+svc.ID || len(task.Identities) != 1 || !reflect.DeepEqual(task.Config["build_env"], []string{"NPM_TOKEN"}) || task.Config["cache"] != nil {
			t.Errorf("%s: %v, %v", trigger, task.Config, task.Identities)
		}
	}
	task := build(leapcell.Change)
	if task.Config["env_path"] != nil || task.Config["build_env"] != nil || task.Identities != nil || task.Config["cache"] == nil {
		t.Errorf("a proposed change: %v, %v", task.Config, task.Identities)
	}
	dep.Settings.BuildEnv = nil
	if task := build(leapcell.Manual); task.Config["env_path"] != nil || task.Identities != nil {
		t.Errorf("without names: %v, %v", task.Config, task.Identities)
	}
}
