package routes

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

// FuzzEvents: whatever comes as a stream of events, the table has instances with an address only,
// and what is known of a deployment fits what is published.
func FuzzEvents(f *testing.F) {
	const ports = `"AllocatedResources":{"Shared":{"Ports":[{"Label":"http","HostIP":"127.0.0.1","Value":28100},{"Label":"b","HostIP":"::1","Value":0}]}}`
	for _, seed := range []string{
		`{}`, `{"Error":"no"}`, `{"Index":7,"Events":[{"Payload":{}},{"Payload":{"Allocation":null}}]}`,
		`{"Index":7,"Events":[{"Payload":{"Allocation":{"ID":"a","JobID":"j","DesiredStatus":"run","ClientStatus":"pending","ModifyIndex":7,` + ports + `}}}]}
{"Index":8,"Events":[{"Payload":{"Allocation":{"ID":"a","JobID":"j","DesiredStatus":"stop","ClientStatus":"running","ModifyIndex":8,` + ports + `}}}]}`,
		`{"Index":9,"Events":[{"Payload":{"Allocation":{"ID":"b","JobID":"j","TaskGroup":"g","Namespace":"n","DesiredStatus":"run","ClientStatus":"failed","ModifyIndex":9,
"TaskStates":{"t":{"State":"pending","Restarts":2}},` + ports + `}}}]}`,
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, stream []byte, plain bool) {
		table := newTable()
		table.publishAll(map[string][]leapcell.Instance{}, nil) // a list comes before all events
		a := &allocations{table: table, plain: plain, known: map[string]map[string]*allocation{}}
		messages := make(chan message)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			defer close(messages)
			_ = read(ctx, json.NewDecoder(strings.NewReader(string(stream))), messages) // its end is an error too
		}()
		index := uint64(0)
		for m := range messages {
			a.apply(m)
			if a.index < index {
				t.Fatalf("the index went back from %d to %d", index, a.index)
			}
			index = a.index
		}
		for deployment := range a.known {
			want := a.instances(deployment)
			got := table.Instances(deployment)
			if len(got) != len(want) {
				t.Errorf("%s has %v, published is %v", deployment, want, got)
			}
			for _, in := range got {
				if _, port, err := net.SplitHostPort(in.Address); err != nil || port == "0" {
					t.Errorf("%s is at %q", in.ID, in.Address)
				}
			}
		}
	})
}

// FuzzSites: a path leads to the route with the longest prefix of it that ends between two
// segments.
func FuzzSites(f *testing.F) {
	f.Add("a.test a.test/api a.test/api/v2/ b.test/only", "a.test", "/api/v2/x")
	f.Add("a.test// a.test/ /x", "", "/x/../x")
	f.Fuzz(func(t *testing.T, names, host, path string) {
		s, claimed := sites{}, map[string]string{}
		for name := range strings.FieldsSeq(names) {
			at, prefix, _ := strings.Cut(name, "/")
			key := at + "/" + strings.TrimRight(prefix, "/")
			_, taken := claimed[key]
			if other := s.claim(name, &leapcell.Route{ServiceID: key}); (other != nil) != taken {
				t.Fatalf("%s: taken is %t, claim says %v", name, taken, other)
			}
			claimed[key] = key
		}
		want, longest := "", -1
		for key := range claimed {
			at, prefix, _ := strings.Cut(key, "/")
			fits := prefix == "" || path == "/"+prefix || strings.HasPrefix(path, "/"+prefix+"/")
			if at == host && fits && len(prefix) > longest {
				want, longest = key, len(prefix)
			}
		}
		got := ""
		if r := s.route(host, path); r != nil {
			got = r.ServiceID
		}
		if got != want {
			t.Errorf("%q%q leads to %q, want %q", host, path, got, want)
		}
	})
}
