package jobs

import (
	"strings"

	"github.com/leapcell/leapcell"
)

// maxInFlight bounds the requests in flight of one service at one edge; beyond it visitors
// get 429. [RQ8]
const maxInFlight = 1000

// Route sends the visitors of svc to dep. Writing it makes the deployment live.
func Route(namespace string, svc leapcell.Service, dep leapcell.Deployment) leapcell.Route {
	set := dep.Settings
	return leapcell.Route{
		Static:       static(dep.Static),
		ServiceID:    svc.ID,
		Service:      svc.Name,
		Hosts:        []string{strings.ToLower(svc.Host)},
		Namespace:    namespace,
		Deployment:   dep.ID,
		Mode:         set.Mode,
		Concurrency:  set.Concurrency,
		MinInstances: set.MinInstances,
		MaxInstances: set.MaxInstances,
		MaxInFlight:  maxInFlight,
		StartTimeout: set.StartTimeout,
		DormantAfter: set.DormantAfter,
		ScaleInDelay: set.ScaleInDelay,
		Ignore:       leapcell.Ignore{Paths: set.IgnorePaths, Agents: set.IgnoreAgents},
	}
}

func static(s *leapcell.Static) *leapcell.RouteStatic {
	if s == nil {
		return nil
	}
	return &leapcell.RouteStatic{Manifest: s.Manifest, Whole: s.Whole}
}

// Preview makes one deployment reachable under a name of its own, whatever is live.
func Preview(namespace string, svc leapcell.Service, dep leapcell.Deployment) leapcell.Route {
	r := Route(namespace, svc, dep)
	host := leapcell.PreviewHost(r.Hosts[0], dep.Number)
	if dep.Preview != "" {
		host = leapcell.BranchHost(r.Hosts[0], dep.Preview)
	}
	r.Hosts = []string{host}
	r.Preview = true
	return r
}
