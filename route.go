package leapcell

import (
	"encoding/json"
	"fmt"
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
	ServiceID  string   `json:"serviceID"`
	Service    string   `json:"service"`
	Hosts      []string `json:"hosts"` // lower case, without port
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
}

// ParseRoute reads the JSON of a route variable.
func ParseRoute(b []byte) (Route, error) {
	var r Route
	if err := json.Unmarshal(b, &r); err != nil {
		return Route{}, fmt.Errorf("route: %w", err)
	}
	if r.ServiceID == "" || r.Deployment == "" || len(r.Hosts) == 0 {
		return Route{}, fmt.Errorf("route of %q: service, deployment and host are needed", r.ServiceID)
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
}
