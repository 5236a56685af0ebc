package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// blocked are the ranges that cells do not reach unless the operator allows it: this machine,
// its neighbours, and what is no unicast address. [ID4]
var blocked = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// metadata is where clouds hand out a machine's credentials. It is refused even when a wider
// range is allowed.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),     // all link-local addresses; 169.254.169.254 nearly everywhere
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure's wire server
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud, classic
}

// maxFlows is how many connections of one cell the host tracks at a time. The table of them is
// one for the whole machine (262,144 by default): a cell that fills it cuts off everybody. A
// connection stays in it for two minutes after its end, so that an app which opens a hundred a
// second has 12,000. Each new one costs its cell a look at all it has.
const maxFlows = 16384

// policy is the platform's nftables tables. The first, for IPv4:
//
//	prerouting   DNS to the relay address goes to the host's own resolver, if that is on loopback
//	input        from a cell: DNS to the nameservers, else refused
//	forward      from a cell: a foreign source dropped; cell to cell, IP options and too many
//	             connections refused; DNS; metadata and denied ranges refused; allowed ranges;
//	             blocked ranges refused; the rest passes
//	             to a cell: answers only
//	postrouting  from the subnet to anywhere else: masquerade
//
// The second drops all IPv6 from and to our links. Cells have none: it is the second wall.
//
// It decides for the platform's own links only. A forward policy of drop in another table, as
// Docker sets it, drops the packets that are accepted here: the operator has to accept those
// from and to the links "lc*" there (for Docker in its chain DOCKER-USER).
type policy struct {
	conn   *nftables.Conn
	table  *nftables.Table
	prefix []byte // of the names of our links
}

// applyPolicy makes the tables, replacing those of that name.
func applyPolicy(cfg Config, names dns) error {
	err := writePolicy(cfg, names, maxFlows)
	if errors.Is(err, unix.ENOENT) {
		cfg.Log.Warn("this kernel cannot count connections (nft_connlimit): an instance may fill the host's table of them")
		err = writePolicy(cfg, names, 0)
	}
	if err != nil {
		return err
	}
	return forbidIPv6(cfg.Name)
}

func writePolicy(cfg Config, names dns, flows uint32) error {
	p, err := newPolicy(cfg.Name, nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	if err := p.filter(cfg, names, flows); err != nil {
		return err
	}
	if names.local.IsValid() {
		p.relay(names)
	}
	p.masquerade(cfg.Subnet)
	return p.flush()
}

// newPolicy begins a table.
func newPolicy(name string, family nftables.TableFamily) (*policy, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	p := &policy{conn: conn, prefix: []byte(linkPrefix(name))}
	// Add, delete, add in one transaction: whether or not there was one, afterwards there is ours.
	p.table = conn.AddTable(&nftables.Table{Family: family, Name: tableName(name)})
	conn.DelTable(p.table)
	p.table = conn.AddTable(&nftables.Table{Family: family, Name: tableName(name)})
	return p, nil
}

func (p *policy) flush() error {
	if err := p.conn.Flush(); err != nil {
		return fmt.Errorf("set up nftables table %s: %w", p.table.Name, err)
	}
	return nil
}

var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	// refuse leads to the chain of [policy.refusals].
	refuse = []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "refuse"}}
)

// refusals makes the chain that answers with an error at once, so that no connect hangs. TCP
// gets a reset: of other answers the kernel sends one a second to each address.
func (p *policy) refusals() {
	chain := p.conn.AddChain(&nftables.Chain{Table: p.table, Name: "refuse"})
	p.rule(chain, protocol(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	p.rule(chain, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}}) // administratively prohibited
}

func (p *policy) filter(cfg Config, names dns, flows uint32) error {
	var hosts []netip.Prefix
	for _, s := range names.servers {
		hosts = append(hosts, netip.PrefixFrom(s, 32))
	}
	if names.local.IsValid() {
		hosts = append(hosts, netip.PrefixFrom(names.local, 32))
	}
	resolvers, err := p.set("resolvers", hosts)
	if err != nil {
		return err
	}
	never, err := p.set("never", append(slices.Clone(metadata), cfg.DenyEgress...))
	if err != nil {
		return err
	}
	allowed, err := p.set("allowed", cfg.AllowEgress)
	if err != nil {
		return err
	}
	refused, err := p.set("refused", blocked)
	if err != nil {
		return err
	}
	from := p.link(expr.MetaKeyIIFNAME, expr.CmpOpEq)
	toCell := p.link(expr.MetaKeyOIFNAME, expr.CmpOpEq)

	p.refusals()
	input := p.chain("input", nftables.ChainHookInput)
	p.rule(input, from, prefix(12, cfg.Subnet, expr.CmpOpNeq), drop)
	p.rule(input, from, options(), refuse)
	p.acceptDNS(input, from, resolvers)
	p.rule(input, from, refuse)

	forward := p.chain("forward", nftables.ChainHookForward)
	p.rule(forward, from, prefix(12, cfg.Subnet, expr.CmpOpNeq), drop)
	p.rule(forward, from, options(), refuse)
	p.rule(forward, from, toCell, refuse)
	if flows > 0 {
		if err := p.limit(forward, from, flows); err != nil {
			return err
		}
	}
	p.acceptDNS(forward, from, resolvers)
	p.rule(forward, from, to(never), refuse)
	p.rule(forward, from, to(allowed), accept)
	p.rule(forward, from, to(refused), refuse)
	p.rule(forward, toCell, state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	p.rule(forward, toCell, drop)
	return nil
}

func (p *policy) acceptDNS(chain *nftables.Chain, from []expr.Any, resolvers *nftables.Set) {
	for _, number := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		p.rule(chain, from, to(resolvers), protocol(number), port53(), accept)
	}
}

// limit refuses what would be one connection too many of a cell.
func (p *policy) limit(chain *nftables.Chain, from []expr.Any, flows uint32) error {
	s := &nftables.Set{Table: p.table, Name: "flows", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 1 << 16}
	if err := p.conn.AddSet(s, nil); err != nil {
		return fmt.Errorf("set up nftables set %s: %w", s.Name, err)
	}
	count := []expr.Any{address(12), &expr.Dynset{
		SrcRegKey: 1, SetName: s.Name, SetID: s.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
		Exprs: []expr.Any{&expr.Connlimit{Count: flows, Flags: expr.NFT_CONNLIMIT_F_INV}},
	}}
	p.rule(chain, from, state(expr.CtStateBitNEW), count, refuse)
	return nil
}

// relay leads questions at the relay address to the resolver on the host's loopback. Such
// resolvers answer only whoever asks from loopback, so that the source is changed as well.
func (p *policy) relay(names dns) {
	from := p.link(expr.MetaKeyIIFNAME, expr.CmpOpEq)
	pre := p.conn.AddChain(&nftables.Chain{
		Table: p.table, Name: "prerouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	in := p.conn.AddChain(&nftables.Chain{
		Table: p.table, Name: "source", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityNATSource,
	})
	one := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 32) }
	nat := func(kind expr.NATType, a netip.Addr) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: a.AsSlice()},
			&expr.NAT{Type: kind, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		}
	}
	for _, number := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		p.rule(pre, from, prefix(16, one(names.relay), expr.CmpOpEq), protocol(number), port53(), nat(expr.NATTypeDestNAT, names.local))
	}
	p.rule(in, from, prefix(16, one(names.local), expr.CmpOpEq), nat(expr.NATTypeSourceNAT, netip.AddrFrom4([4]byte{127, 0, 0, 1})))
}

func (p *policy) masquerade(subnet netip.Prefix) {
	chain := p.conn.AddChain(&nftables.Chain{
		Table: p.table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	p.rule(chain, prefix(12, subnet, expr.CmpOpEq), p.link(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})
}

// forbidIPv6 makes the second table. A kernel without IPv6 needs none.
func forbidIPv6(name string) error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil
	}
	p, err := newPolicy(name, nftables.TableFamilyIPv6)
	if err != nil {
		return err
	}
	p.rule(p.chain("input", nftables.ChainHookInput), p.link(expr.MetaKeyIIFNAME, expr.CmpOpEq), drop)
	forward := p.chain("forward", nftables.ChainHookForward)
	p.rule(forward, p.link(expr.MetaKeyIIFNAME, expr.CmpOpEq), drop)
	p.rule(forward, p.link(expr.MetaKeyOIFNAME, expr.CmpOpEq), drop)
	return p.flush()
}

func (p *policy) chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return p.conn.AddChain(&nftables.Chain{
		Table: p.table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook,
		// Before the usual tables: what is refused here is refused, whatever they say.
		Priority: nftables.ChainPriorityRef(-10), Policy: &accept,
	})
}

func (p *policy) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	p.conn.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// set makes a named set of address ranges.
func (p *policy) set(name string, ranges []netip.Prefix) (*nftables.Set, error) {
	s := &nftables.Set{Table: p.table, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	var elements []nftables.SetElement
	for _, r := range merge(ranges) {
		elements = append(elements, nftables.SetElement{Key: r[0].AsSlice()})
		if end := r[1].Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	if err := p.conn.AddSet(s, elements); err != nil {
		return nil, fmt.Errorf("set up nftables set %s: %w", name, err)
	}
	return s, nil
}

// merge gives the first and last addresses of the ranges, sorted, overlaps joined: the kernel
// refuses overlaps.
func merge(ranges []netip.Prefix) [][2]netip.Addr {
	var list [][2]netip.Addr
	for _, r := range ranges {
		list = append(list, [2]netip.Addr{r.Masked().Addr(), last(r)})
	}
	slices.SortFunc(list, func(a, b [2]netip.Addr) int { return a[0].Compare(b[0]) })
	var out [][2]netip.Addr
	for _, r := range list {
		if n := len(out); n > 0 && (r[0].Compare(out[n-1][1]) <= 0 || out[n-1][1].Next() == r[0]) {
			if r[1].Compare(out[n-1][1]) > 0 {
				out[n-1][1] = r[1]
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// link matches packets that come in or go out by one of our links. Comparing fewer bytes
// than a name has compares its beginning.
func (p *policy) link(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: p.prefix}}
}

// to matches the destination address.
func to(s *nftables.Set) []expr.Any {
	return []expr.Any{address(16), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

// address loads an address of the IPv4 header: the source is at 12, the destination at 16.
func address(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// prefix compares the address at offset with a prefix.
func prefix(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return []expr.Any{
		address(offset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// options matches packets with IP options. Any process may set them, a source route among
// them, which names stations that no rule here looks at.
func options() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x0f}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{5}}, // words of a header without any
	}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

func port53() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
	}
}

// state matches packets of connections in one of the states.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// removePolicy deletes the tables; one that is not there is no error.
func removePolicy(name string) error {
	var errs []error
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		conn.DelTable(&nftables.Table{Family: family, Name: tableName(name)})
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			errs = append(errs, fmt.Errorf("remove nftables table %s: %w", tableName(name), err))
		}
	}
	return errors.Join(errs...)
}
