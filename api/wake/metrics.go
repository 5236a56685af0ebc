package wake

import "sync/atomic"

// Figures are what the scaler has done, and what it sees.
type Figures struct {
	Leading bool // this process sizes the services
	Edges   int  // that reported lately
	// Out, In and Dormant are changes of a deployment's count, to more, to fewer and to none.
	Out, In, Dormant int64
	Failed           int64           // changes that Nomad or the store did not take
	Instances        map[string]Size // by service ID, of deployments that visitors may reach; nil unless leading
}

// Size is how many instances Nomad wants, and how many of them are ready.
type Size struct{ Wanted, Ready int }

// sums are the running totals behind [Figures].
type sums struct {
	leading                  atomic.Bool
	out, in, dormant, failed atomic.Int64
}

func (s *sums) scaled(from, to int) {
	switch {
	case to == 0:
		s.dormant.Add(1)
	case to < from:
		s.in.Add(1)
	default:
		s.out.Add(1)
	}
}

// Figures reads them.
func (s *Scaler) Figures() Figures {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := Figures{Leading: s.sums.leading.Load(), Edges: len(s.edges),
		Out: s.sums.out.Load(), In: s.sums.in.Load(), Dormant: s.sums.dormant.Load(), Failed: s.sums.failed.Load()}
	if f.Leading {
		f.Instances = s.sizes // never changed once there
	}
	return f
}
