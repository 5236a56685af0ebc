package edge

import (
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

var metricName = regexp.MustCompile(`leapcell_edge_[a-z_]+`)

// What the manual and the dashboard ask for must exist.
func TestDocumentedMetricsExist(t *testing.T) {
	w := startWatched(t, Config{}, coldOnce())
	io.Copy(io.Discard, w.get("/").Body)
	io.Copy(io.Discard, w.get("/up").Body)
	have := map[string]bool{}
	for _, name := range metricName.FindAllString(w.scrape(), -1) {
		have[name] = true
	}
	for _, file := range []string{"../../docs/operations.md", "../../docs/grafana.json"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") && !json.Valid(b) {
			t.Errorf("%s is not JSON", file)
		}
		names := metricName.FindAllString(string(b), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric: the test looks in the wrong place", file)
		}
		for _, name := range names {
			if !have[name] {
				t.Errorf("%s names %s, which the edge does not have", file, name)
			}
		}
	}
}

func TestReasonsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for reason := range knownReasons {
		if reason != "internal" && !strings.Contains(string(b), "`"+reason+"`") {
			t.Errorf("the manual does not say what the reason %q means", reason)
		}
	}
}
