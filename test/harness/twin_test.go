package harness

import (
	"strings"
	"testing"
)

func TestWithFlag(t *testing.T) {
	for want, args := range map[string]string{
		"edge --listen b --id=x": "edge --listen a --id=x",
		"edge --listen=b":        "edge --listen=a",
		"edge --id=x --listen=b": "edge --id=x",
		"edge --listen=b --old":  "edge --listen=a --old",
	} {
		if got := strings.Join(withFlag(strings.Fields(args), "--listen", "b"), " "); got != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

func TestSecondAgentIsTheFirstWithOtherFolders(t *testing.T) {
	first := `name                 = "leapcell"
data_dir             = "/s/nomad/data"
ports {
  http = 1
  rpc  = 2
  serf = 3
}
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled                  = true
  min_dynamic_port         = 10
  max_dynamic_port         = 20
  cgroup_parent            = "leapcell-abc-nomad"
}
plugin "nomad-driver-leapcell" {
  config {
    state_dir                 = "/s/node"
    name                      = "abc"
    runtime                   = "runc"
  }
}
`
	got, err := secondAgent(first, secondNode{dir: "/n", name: "def", runtime: "crun", server: "127.0.0.1:2", http: 4, rpc: 5, serf: 6, from: 30, to: 40})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`name = "leapcell-def"`, `data_dir = "/n/nomad/data"`, "http = 4", "rpc = 5", "serf = 6", "min_dynamic_port = 30", "max_dynamic_port = 40",
		`cgroup_parent = "leapcell-def-nomad"`, `state_dir = "/n/node"`, `name = "def"`, `runtime = "crun"`, `servers = ["127.0.0.1:2"]`, "server {\n  enabled = false\n}",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
	for _, old := range []string{"/s/", "abc", "bootstrap_expect"} {
		if strings.Contains(got, old) {
			t.Errorf("%s is still in\n%s", old, got)
		}
	}
	if _, err := secondAgent("client {\n}\n", secondNode{}); err == nil {
		t.Error("a configuration without the lines to change is taken")
	}
}
