package routes

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// The meta by which a job, or a group of one, asks for the edge. docs/wake.md is for users.
const (
	metaHost         = "leapcell_host"
	metaGroup        = "leapcell_group"
	metaPort         = "leapcell_port"
	metaIdle         = "leapcell_idle"
	metaProbe        = "leapcell_probe"
	metaStartTimeout = "leapcell_start_timeout"
	metaCount        = "leapcell_count"
	metaConcurrency  = "leapcell_concurrency"
	metaIgnore       = "leapcell_ignore"
)

var metaKeys = []string{metaHost, metaGroup, metaPort, metaIdle, metaProbe, metaStartTimeout, metaCount, metaConcurrency, metaIgnore}

const (
	idleNever = "never"
	probeTCP  = "tcp"
	// leastIdle is as short as Nomad's own delays let it make sense.
	leastIdle = time.Second
	mostCount = 1000
)

// asksForEdge reports whether a job is to be looked at. The list of jobs has the meta of the
// job, not that of its groups.
func asksForEdge(meta map[string]string) bool {
	return slices.ContainsFunc(metaKeys, func(key string) bool { _, ok := meta[key]; return ok })
}

// jobRoutes are the routes that a job asks for: those of each group with a host in its own
// meta, else that of the one group that the job's meta means. A group's meta goes before the
// job's, as everywhere in Nomad.
func jobRoutes(namespace string, job *api.Job) ([]*leapcell.Route, error) {
	if job.ID == nil {
		return nil, fmt.Errorf("the job has no ID")
	}
	if job.Type != nil && *job.Type != api.JobTypeService {
		return nil, fmt.Errorf("the job is of type %s: only a job of type service can be woken", *job.Type)
	}
	var out []*leapcell.Route
	add := func(group *api.TaskGroup) error {
		meta := maps.Clone(job.Meta)
		if meta == nil {
			meta = map[string]string{}
		}
		maps.Copy(meta, group.Meta)
		route, err := groupRoute(namespace, *job.ID, group, meta)
		if err != nil {
			return fmt.Errorf("group %s: %w", *group.Name, err)
		}
		out = append(out, route)
		return nil
	}
	for _, group := range job.TaskGroups {
		if group.Name == nil {
			return nil, fmt.Errorf("a group has no name")
		}
		if _, own := group.Meta[metaHost]; own {
			if err := add(group); err != nil {
				return nil, err
			}
		}
	}
	if _, ofJob := job.Meta[metaHost]; !ofJob {
		return out, nil
	}
	group, err := meantGroup(job)
	if err != nil {
		return nil, err
	}
	if _, own := group.Meta[metaHost]; own {
		return out, nil
	}
	return out, add(group)
}

// meantGroup is the group that the job's own meta is about.
func meantGroup(job *api.Job) (*api.TaskGroup, error) {
	name := job.Meta[metaGroup]
	if name == "" && len(job.TaskGroups) == 1 {
		return job.TaskGroups[0], nil
	}
	var names []string
	for _, group := range job.TaskGroups {
		if *group.Name == name {
			return group, nil
		}
		names = append(names, *group.Name)
	}
	if name == "" {
		return nil, fmt.Errorf("the job has the groups %s: say in %s which one is meant, or give each its own %s", strings.Join(names, ", "), metaGroup, metaHost)
	}
	return nil, fmt.Errorf("%s is %q, and there is no such group: %s", metaGroup, name, strings.Join(names, ", "))
}

func groupRoute(namespace, job string, group *api.TaskGroup, meta map[string]string) (*leapcell.Route, error) {
	port, err := meantPort(group, meta[metaPort])
	if err != nil {
		return nil, err
	}
	hosts, err := parseHosts(meta[metaHost])
	if err != nil {
		return nil, err
	}
	plain := &leapcell.PlainJob{Job: job, Group: *group.Name, Port: port}
	route := &leapcell.Route{ServiceID: namespace + "/" + job + "/" + *group.Name, Service: job, Hosts: hosts,
		Namespace: namespace, Deployment: jobKey(namespace, job, *group.Name, port), Mode: leapcell.Persistent, Plain: plain}
	if plain.Count, err = parseNumber(meta, metaCount, 1, mostCount); err != nil {
		return nil, err
	}
	if route.Concurrency, err = parseNumber(meta, metaConcurrency, leapcell.MaxConcurrency, leapcell.MaxConcurrency); err != nil {
		return nil, err
	}
	start, err := parseDuration(meta, metaStartTimeout, leapcell.MaxStartTimeout, 100*time.Millisecond, leapcell.MaxStartTimeout)
	if err != nil {
		return nil, err
	}
	route.StartTimeout = leapcell.Duration(start)
	if meta[metaIdle] != idleNever {
		idle, err := parseDuration(meta, metaIdle, leapcell.DormantAfter, leastIdle, 365*24*time.Hour)
		if err != nil {
			return nil, fmt.Errorf("%w; or %q", err, idleNever)
		}
		route.DormantAfter = leapcell.Duration(idle)
	}
	if plain.Probe, err = parseProbe(meta[metaProbe]); err != nil {
		return nil, err
	}
	route.Ignore.Paths = fields(meta[metaIgnore])
	return route, nil
}

// jobKey names what requests go to: one port of one group.
func jobKey(namespace, job, group, port string) string {
	return namespace + "/" + job + "/" + group + "/" + port
}

func meantPort(group *api.TaskGroup, label string) (string, error) {
	var labels []string
	for _, network := range group.Networks {
		for _, p := range slices.Concat(network.DynamicPorts, network.ReservedPorts) {
			labels = append(labels, p.Label)
		}
	}
	switch {
	case len(labels) == 0:
		return "", fmt.Errorf("it has no port: its network block needs one")
	case label == "" && len(labels) == 1:
		return labels[0], nil
	case label == "" && slices.Contains(labels, leapcell.PortLabel):
		return leapcell.PortLabel, nil
	case label == "":
		return "", fmt.Errorf("it has the ports %s: say in %s which one", strings.Join(labels, ", "), metaPort)
	case !slices.Contains(labels, label):
		return "", fmt.Errorf("%s is %q, and there is no such port: %s", metaPort, label, strings.Join(labels, ", "))
	}
	return label, nil
}

func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })
}

// parseHosts reads "shop.example.com, www.example.com/shop".
func parseHosts(list string) ([]string, error) {
	hosts := fields(list)
	if len(hosts) == 0 {
		return nil, fmt.Errorf("%s is empty: it must be a host name, or several with commas between", metaHost)
	}
	for i, name := range hosts {
		host, prefix, hasPath := strings.Cut(name, "/")
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		bad := func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
		}
		if host == "" || len(host) > 253 || strings.ContainsFunc(host, bad) {
			return nil, fmt.Errorf("%s has %q: it must be a host name without scheme and port, with a path at most", metaHost, name)
		}
		if hasPath {
			if clean := path.Clean("/" + prefix); clean != "/" {
				host += clean
			}
		}
		hosts[i] = host
	}
	return hosts, nil
}

func parseProbe(probe string) (string, error) {
	switch {
	case probe == "" || probe == probeTCP:
		return "", nil
	case !strings.HasPrefix(probe, "/") || strings.ContainsFunc(probe, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", fmt.Errorf("%s is %q: it must be %q or a path that begins with a slash", metaProbe, probe, probeTCP)
	}
	return probe, nil
}

func parseNumber(meta map[string]string, key string, missing, most int) (int, error) {
	text, ok := meta[key]
	if !ok {
		return missing, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("%s is %q: it must be a number from 1 to %d", key, text, most)
	}
	return n, nil
}

func parseDuration(meta map[string]string, key string, missing, least, most time.Duration) (time.Duration, error) {
	text, ok := meta[key]
	if !ok {
		return missing, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("%s is %q: it must be a time such as 10m or 90s, from %s to %s", key, text, least, most)
	}
	return d, nil
}
