package leapcell_test

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestParseRoute(t *testing.T) {
	want := leapcell.Route{
		ServiceID: "python-default-abcd1234", Service: "python", Hosts: []string{"python.leapcell.localhost"}, Namespace: "leapcell",
		Deployment: "python-1", Mode: leapcell.Serverless, Concurrency: 50, MinInstances: 1, MaxInstances: 10, MaxInFlight: 100,
		StartTimeout: leapcell.Duration(10 * time.Second), DormantAfter: leapcell.Duration(time.Minute), ScaleInDelay: leapcell.Duration(time.Second),
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := leapcell.ParseRoute(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestParseRouteRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":       `serviceID`,
		"no service":    `{"deployment":"a-1","hosts":["a"]}`,
		"no deployment": `{"serviceID":"a","hosts":["a"]}`,
		"no host":       `{"serviceID":"a","deployment":"a-1","hosts":[]}`,
		"bad duration":  `{"serviceID":"a","deployment":"a-1","hosts":["a"],"startTimeout":"x"}`,
	} {
		if r, err := leapcell.ParseRoute([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", name, r)
		}
	}
}

// A route variable is written by the control plane, but read by every edge: whatever is in
// it, the edge must not fall over, and what it accepts must survive being written again.
func FuzzParseRoute(f *testing.F) {
	f.Add([]byte(`{"serviceID":"a","deployment":"a-1","hosts":["a.leapcell.localhost"],"startTimeout":"10s"}`))
	f.Add([]byte(`{"serviceID":"a","deployment":"a-1","hosts":[""],"concurrency":-1}`))
	f.Add([]byte(`{"serviceID":null}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := leapcell.ParseRoute(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("cannot be written: %v", err)
		}
		if r2, err := leapcell.ParseRoute(again); err != nil || !reflect.DeepEqual(r, r2) {
			t.Errorf("%+v became %+v, %v", r, r2, err)
		}
	})
}

func TestBranchLabels(t *testing.T) {
	short, long := "shop-default-abcdefgh.example.com", strings.Repeat("n", 32)+"-default-abcdefgh.example.com"
	if got := leapcell.BranchLabel(short, "feature-1"); got != "feature-1" {
		t.Errorf("a branch whose name can be used has the label %q", got)
	}
	seen := map[string]string{}
	branches := []string{
		"main", "next", "feature/a", "feature-a", "feature_a", "Feature-A", "FEATURE/A", "42", "7-seas", "-x", "x-", "x--y", "ü", "übung",
		"日本", "dependabot/npm_and_yarn/some/very-long-name-of-a-module-4.17.21", "dependabot/npm_and_yarn/some/very-long-name-of-a-module-4.17.22",
		strings.Repeat("a", 200), strings.Repeat("a", 201), "/", "b",
	}
	for _, host := range []string{short, long} {
		for _, branch := range branches {
			label := leapcell.BranchLabel(host, branch)
			first, _, _ := strings.Cut(leapcell.BranchHost(host, label), ".")
			if !dnsLabel.MatchString(first) || len(first) > 63 || label[0] < 'a' {
				t.Errorf("the branch %q has the label %q of %d characters", branch, first, len(first))
			}
			if label != leapcell.BranchLabel(host, branch) {
				t.Errorf("the label of %q changes", branch)
			}
			if other, ok := seen[host+label]; ok {
				t.Errorf("%q and %q share the label %q", branch, other, label)
			}
			seen[host+label] = branch
		}
	}
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
