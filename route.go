package leapcell

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Paths of the Nomad variables the platform keeps. What runs and where visitors go is in
// Nomad alone: there is no second source of truth.
const (
	RoutesPrefix = "leapcell/routes/" // + service ID: one [Route]
	EnvPrefix    = "leapcell/env/"    // + service ID: one [SealedEnv]
	// VariableItem is the one item of each variable; its value is JSON.
	VariableItem = "json"
)

// Group is the name of the task group in every job that the platform makes; the task is
// named after the service's ID.
const Group = "app"

// PortLabel is the label of the gate's port in every service job.
const PortLabel = "http"

// Route says which deployment answers for a host, and all the edge needs to know to wake
// and to limit it. It is the last thing written in a deploy: from then on the deployment
// is live.
type Route struct {
	ServiceID string `json:"serviceID"`
	Service   string `json:"service"`
	// Hosts are lower case and without port. One with a path, "example.com/api", is for that
	// path and what is below it; the longest that fits a request has it.
	Hosts      []string `json:"hosts"`
	Namespace  string   `json:"namespace"`
	Deployment string   `json:"deployment"` // = the Nomad job ID
	Mode       Mode     `json:"mode"`

	Concurrency  int      `json:"concurrency"` // in flight per instance
	MinInstances int      `json:"minInstances"`
	MaxInstances int      `json:"maxInstances"`
	MaxInFlight  int      `json:"maxInFlight"` // per service, then 429
	StartTimeout Duration `json:"startTimeout"`
	DormantAfter Duration `json:"dormantAfter"`
	ScaleInDelay Duration `json:"scaleInDelay"`

	// Ignore is answered by the edge and wakes nothing.
	Ignore Ignore `json:"ignore,omitzero"`

	// Preview marks the route of one deployment under a name of its own, see [PreviewHost].
	// It stays as long as the deployment can be rolled back to.
	Preview bool `json:"preview,omitempty"`
	// Split sends a part of the requests to another deployment.
	Split *Split `json:"split,omitempty"`

	// Static is the front end that edges serve by themselves, nil for none.
	Static *RouteStatic `json:"static,omitempty"`
	// Former are the front ends of former deployments, the newest first, by manifest: pages that
	// were loaded before a deploy still ask for their files. Only those with a hash in their
	// names are given.
	Former []string `json:"former,omitempty"`

	// Plain is set for a job that the platform did not deploy. Edges make such routes from
	// the job itself; a route variable cannot say it.
	Plain *PlainJob `json:"-"`
}

// HasFiles reports whether requests may be for files that edges serve.
func (r *Route) HasFiles() bool { return r.Static != nil || len(r.Former) > 0 }

// RouteStatic is a front end as an edge needs it.
type RouteStatic struct {
	Manifest string `json:"manifest"`        // see [Static]
	Whole    bool   `json:"whole,omitempty"` // no instance answers what is no file
}

// PlainJob is what an edge must know of a job that the platform did not deploy: no gate of
// ours stands before its instances. For DormantAfter of its route, zero is never.
type PlainJob struct {
	Job, Group string
	Port       string // label of the port that requests go to
	Count      int    // instances to wake
	Probe      string // path that must answer before requests go there; "": the port must
}

// Ignore names requests that are none of the service's business, such as those of uptime
// checks: the edge answers them with 204 and they neither wake the service nor keep it awake.
type Ignore struct {
	Paths  []string `json:"paths,omitempty"`  // exact, or with * at the end
	Agents []string `json:"agents,omitempty"` // part of the User-Agent, in any case
}

// Ignores reports whether the edge answers a request by itself.
func (r *Route) Ignores(path, userAgent string) bool {
	for _, p := range r.Ignore.Paths {
		if prefix, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(path, prefix) || p == path {
			return true
		}
	}
	if len(r.Ignore.Agents) == 0 {
		return false
	}
	userAgent = strings.ToLower(userAgent)
	for _, a := range r.Ignore.Agents {
		if strings.Contains(userAgent, strings.ToLower(a)) {
			return true
		}
	}
	return false
}

// Split says which part of a service's requests another of its deployments gets: each
// request is for itself. [LI1]
type Split struct {
	Deployment string `json:"deployment"`
	Host       string `json:"host"`    // of its preview route
	Percent    int    `json:"percent"` // 1 to 99
}

// Key names what an edge queues and counts on its own: a service, or a preview of it.
func (r *Route) Key() string {
	if r.Preview {
		return r.Deployment
	}
	return r.ServiceID
}

// PreviewHost is the name under which deployment number n of the service at host is always
// reached. It has the number only: the whole ID could make the label longer than the 63
// characters that DNS allows.
func PreviewHost(host string, n int) string { return fmt.Sprintf("%d--%s", n, host) }

// PreviewPath is the Nomad variable of that route.
func PreviewPath(serviceID string, n int) string {
	return fmt.Sprintf("%s%s/%d", RoutesPrefix, serviceID, n)
}

// BranchLabel is the label of the previews of a branch of the service at host: it looks like
// the branch, is a different one for each, and makes a DNS label together with the host's
// first. It begins with a letter, so that it is no deployment's number.
func BranchLabel(host, branch string) string {
	var b strings.Builder
	for _, r := range branch {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	text := strings.Trim(b.String(), "-")
	first, _, _ := strings.Cut(host, ".")
	room := max(maxLabel-len(first)-len("--"), len("b")+branchHash)
	if text == branch && len(text) <= room && text[0] >= 'a' {
		return text
	}
	sum := sha256.Sum256([]byte(branch))
	end := hex.EncodeToString(sum[:])[:branchHash]
	if text == "" || text[0] < 'a' {
		text = "b" + text
	}
	text = strings.TrimRight(text[:min(len(text), max(room-branchHash-1, 0))], "-")
	if text == "" {
		return "b" + end
	}
	return text + "-" + end
}

const (
	maxLabel   = 63 // characters of a DNS label
	branchHash = 7  // digits of the hash that tell branches of like names apart
)

// BranchHost is the name under which the preview with that label is reached.
func BranchHost(host, label string) string { return label + "--" + host }

// BranchPath is the Nomad variable of that route.
func BranchPath(serviceID, label string) string { return RoutesPrefix + serviceID + "/" + label }

// ParseRoute reads the JSON of a route variable.
func ParseRoute(b []byte) (Route, error) {
	var r Route
	if err := json.Unmarshal(b, &r); err != nil {
		return Route{}, fmt.Errorf("route: %w", err)
	}
	if r.ServiceID == "" || r.Deployment == "" || len(r.Hosts) == 0 {
		return Route{}, fmt.Errorf("route of %q: service, deployment and host are needed", r.ServiceID)
	}
	if s := r.Split; s != nil && (s.Host == "" || s.Percent < 1 || s.Percent > 99) {
		return Route{}, fmt.Errorf("route of %q: the split needs a host and 1 to 99 percent", r.ServiceID)
	}
	return r, nil
}

// SealedEnv is a service's environment as Vault sealed it. Only an instance of the service
// can open it.
type SealedEnv struct {
	Version int               `json:"version"` // grows by one with each change
	Values  map[string]string `json:"values"`  // name -> "vault:v1:…"
}

// EdgeReport is what an edge tells the scaler about the services it saw.
type EdgeReport struct {
	Edge string `json:"edge"`
	// RoutesIndex is the Nomad index up to which the edge has read the routes: a route
	// written at or before it is in effect there.
	RoutesIndex uint64        `json:"routesIndex"`
	Services    []EdgeService `json:"services"`
}

// EdgeService is the load of one service at one edge.
type EdgeService struct {
	ServiceID  string `json:"serviceID"`
	Deployment string `json:"deployment"`
	InFlight   int    `json:"inFlight"`
	Queued     int    `json:"queued"`
	Requests   int64  `json:"requests"` // since the edge started
	Preview    bool   `json:"preview,omitempty"`
	// Plain marks a job that the platform did not deploy: the control plane does not hear of it.
	Plain bool `json:"-"`
}

// Key is that of the route.
func (s EdgeService) Key() string {
	if s.Preview {
		return s.Deployment
	}
	return s.ServiceID
}
