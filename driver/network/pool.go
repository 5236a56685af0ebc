package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Pool keeps network namespaces ready.
//
//	made ─► ready ─Get─► handed out ─Put─► removed
//	left by an earlier process: occupied ─► waits for Adopt; empty ─► removed
//
// A namespace serves one cell. Used again, it would tell the next one whom the former talked
// to (TCP metrics, path MTUs) and how much (counters), and none of that can be wiped.
type Pool struct {
	cfg   Config
	names dns
	slots int
	work  sync.WaitGroup // making and removing in the background

	mu       sync.Mutex
	ready    []*Namespace
	held     map[string]*Namespace // occupied leftovers, by name
	used     map[int]bool          // slots of all namespaces, in whatever state
	next     int                   // where to look for a free slot: late reuse keeps late packets apart
	making   int
	gone     []*Namespace // given back, to be removed
	removing bool         // somebody is at it
	closed   bool
}

// New makes the platform's nftables table, turns forwarding on, takes over the namespaces that an
// earlier process left, and starts to fill the pool.
func New(cfg Config) (*Pool, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pool{cfg: cfg, names: cfg.resolvers(), slots: cfg.slots(), held: map[string]*Namespace{}, used: map[int]bool{}}
	// Read once: makers of namespaces see what the policy sees.
	if cfg.Nameservers = p.names.servers; p.names.local.IsValid() {
		cfg.Nameservers = []netip.Addr{p.names.local}
	}
	p.cfg = cfg
	if err := enableForwarding(cfg.Log); err != nil {
		return nil, err
	}
	if err := applyPolicy(cfg, p.names); err != nil {
		return nil, err
	}
	if err := p.takeOver(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fill()
	return p, nil
}

const forwardSwitch = "/proc/sys/net/ipv4/ip_forward"

func enableForwarding(log *slog.Logger) error {
	text, err := os.ReadFile(forwardSwitch)
	if err != nil {
		return fmt.Errorf("read %s: %w", forwardSwitch, err)
	}
	if strings.TrimSpace(string(text)) == "1" {
		return nil
	}
	if err := os.WriteFile(forwardSwitch, []byte("1"), 0); err != nil {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "instances cannot reach the internet: set net.ipv4.ip_forward to 1")
	}
	log.Info("turned on IPv4 forwarding, which was off; it stays on", "sysctl", "net.ipv4.ip_forward")
	return nil
}

// takeOver looks through what an earlier process left.
func (p *Pool) takeOver() error {
	slots, err := leftovers(p.cfg.Name)
	if err != nil {
		return err
	}
	var empty []*Namespace
	defer func() { p.forget(empty) }()
	for _, slot := range slots {
		n := place(p.cfg, slot)
		if n.fd, err = os.Open(n.Path); err != nil {
			return err
		}
		occupied, err := n.occupied()
		switch {
		case err == nil && occupied && slot < p.slots:
			p.held[n.Name], p.used[slot] = n, true
		case err != nil:
			return err
		default: // making anew is surer than finding out in what state it was left
			if err := remove(p.cfg.Name, n); err != nil {
				return err
			}
			empty = append(empty, n)
		}
	}
	return nil
}

// leftovers are the slots of the namespaces that are there.
func leftovers(name string) ([]int, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var slots []int
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), netnsPrefix(name))
		if slot, err := strconv.Atoi(number); ok && err == nil {
			slots = append(slots, slot)
		}
	}
	return slots, nil
}

// Get takes a namespace out of the pool, making one when none is ready.
func (p *Pool) Get(ctx context.Context) (*Namespace, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	if last := len(p.ready) - 1; last >= 0 {
		n := p.ready[last]
		p.ready = p.ready[:last]
		p.fill()
		p.mu.Unlock()
		return n, nil
	}
	slot, ok := p.slot()
	p.fill()
	p.mu.Unlock()
	if !ok {
		return nil, leapcell.Errorf(leapcell.CodeUnavailable, "all %d addresses of the subnet %s are in use: give the driver a larger one", p.slots, p.cfg.Subnet)
	}
	n, err := makeNamespace(p.cfg, slot)
	if err != nil {
		p.free(slot)
		return nil, err
	}
	return n, nil
}

var errClosed = errors.New("the pool of network namespaces is closed")

// slot takes a free slot. The lock is held.
func (p *Pool) slot() (int, bool) {
	for range p.slots {
		s := p.next
		p.next = (p.next + 1) % p.slots
		if !p.used[s] {
			p.used[s] = true
			return s, true
		}
	}
	return 0, false
}

func (p *Pool) free(slot int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, slot)
}

// fill makes in the background what is missing. The lock is held.
func (p *Pool) fill() {
	for !p.closed && len(p.ready)+p.making < p.cfg.Size {
		slot, ok := p.slot()
		if !ok {
			return
		}
		p.making++
		p.work.Go(func() {
			n, err := makeNamespace(p.cfg, slot)
			if err != nil {
				// Not tried again before the next Get, which then reports it.
				p.cfg.Log.Error("make a network namespace", "error", err)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.making--
			if err != nil {
				delete(p.used, slot)
				return
			}
			p.ready = append(p.ready, n)
		})
	}
}

// Adopt takes the namespace of that name, which an earlier process handed out and a cell is
// still in, into use again.
func (p *Pool) Adopt(name string) (*Namespace, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.held[name]
	if !ok {
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "network namespace %s is not there or has no process in it", name)
	}
	delete(p.held, name)
	return n, nil
}

// Settle gives back the leftovers that nobody adopted: whatever is in them was started by a
// process that died before it could write them down, and has been ended.
func (p *Pool) Settle() {
	p.mu.Lock()
	held := p.held
	p.held = map[string]*Namespace{}
	p.mu.Unlock()
	for _, n := range held {
		p.Put(n)
	}
}

// Put gives a namespace back after its last process has ended. It returns at once; the namespace
// is removed in the background.
func (p *Pool) Put(ns *Namespace) {
	if ns == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = append(p.gone, ns)
	if !p.removing {
		p.removing = true
		p.work.Go(p.clear)
	}
}

// clear removes what was given back, one by one: the kernel holds its network lock meanwhile,
// and a start that needs it waits for one removal at most.
func (p *Pool) clear() {
	for {
		p.mu.Lock()
		batch := p.gone
		p.gone = nil
		if len(batch) == 0 {
			p.removing = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		for _, n := range batch {
			if err := remove(p.cfg.Name, n); err != nil {
				p.cfg.Log.Error("remove a used network namespace", "namespace", n.Name, "error", err)
			}
		}
		p.forget(batch)
		p.mu.Lock()
		for _, n := range batch {
			delete(p.used, n.slot)
		}
		p.fill()
		p.mu.Unlock()
	}
}

// forget has the host forget the connections of removed namespaces: what still comes in for one
// must not reach the next cell with that address.
func (p *Pool) forget(list []*Namespace) {
	if len(list) == 0 {
		return
	}
	f := former{}
	for _, n := range list {
		f[n.Addr] = true
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f); err != nil {
		p.cfg.Log.Warn("the connections of former instances could not be forgotten: they time out by themselves", "error", err)
	}
}

// former are addresses whose connections are to be forgotten.
type former map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f former) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && f[a.Unmap()] {
			return true
		}
	}
	return false
}

// Close removes all namespaces that are not handed out. The table stays: cells may go on.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, n := range p.ready {
		errs = append(errs, remove(p.cfg.Name, n))
	}
	p.ready = nil
	return errors.Join(errs...)
}

// ResolvConf is the content of /etc/resolv.conf inside.
func (p *Pool) ResolvConf() []byte { return resolvConf(p.names.servers) }

// Destroy removes everything of the platform name: links, namespaces, nftables table. What is
// not there is no error.
func Destroy(name string) error {
	if !nameFormat.MatchString(name) {
		return leapcell.Errorf(leapcell.CodeInvalid, "network name %q: 1 to 8 letters and digits are allowed", name)
	}
	slots, err := leftovers(name)
	errs := []error{err}
	for _, slot := range slots {
		errs = append(errs, remove(name, place(Config{Name: name, Subnet: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, slot)))
	}
	links, err := Links()
	errs = append(errs, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, linkPrefix(name)) {
			errs = append(errs, removeLink(l.Attrs().Name))
		}
	}
	return errors.Join(append(errs, removePolicy(name))...)
}

// dumps is how often a list is begun: on a machine where links come and go all the time, each
// may be interrupted.
const dumps = 100

// Links are all network links of this machine's namespace. The kernel says when the list changed
// while it was read, and that it may lack some then (NLM_F_DUMP_INTR); it is read anew.
func Links() (links []netlink.Link, err error) {
	for range dumps {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return links, err
}
