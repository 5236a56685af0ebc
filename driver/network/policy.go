package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// blocked are the ranges that cells do not reach unless the operator allows it: this machine,
// its neighbours, cloud metadata, and what is no unicast address. [ID4]
var blocked = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// linkLocal is refused even when a wider range is allowed: it is where clouds hand out credentials.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// policy is the platform's nftables table:
//
//	input        from a cell: DNS to the nameservers, else refused
//	forward      cell to cell refused; DNS, allowed ranges; blocked ranges refused; the rest passes
//	             to a cell: answers only
//	postrouting  from the subnet to anywhere else: masquerade
//
// It decides for the platform's own links only. A forward policy of drop in another table, as
// Docker sets it, drops the packets that are accepted here: the operator has to accept those
// from and to the links "lc*" there (for Docker in its chain DOCKER-USER).
type policy struct {
	conn   *nftables.Conn
	table  *nftables.Table
	prefix []byte // of the names of our links
}

// applyPolicy makes the table, replacing one of that name.
func applyPolicy(cfg Config, servers []netip.Addr) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	p := &policy{conn: conn, prefix: []byte(linkPrefix(cfg.Name))}
	// Add, delete, add in one transaction: whether or not there was one, afterwards there is ours.
	p.table = conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName(cfg.Name)})
	conn.DelTable(p.table)
	p.table = conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName(cfg.Name)})
	if err := p.filter(cfg, servers); err != nil {
		return err
	}
	p.masquerade(cfg.Subnet)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set up nftables table %s: %w", p.table.Name, err)
	}
	return nil
}

func (p *policy) filter(cfg Config, servers []netip.Addr) error {
	var hosts []netip.Prefix
	for _, s := range servers {
		hosts = append(hosts, netip.PrefixFrom(s, 32))
	}
	resolvers, err := p.set("resolvers", hosts)
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
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	// An error at once, not a connect that hangs.
	refuse := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}}
	from := p.link(expr.MetaKeyIIFNAME, expr.CmpOpEq)

	input := p.chain("input", nftables.ChainHookInput)
	for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		p.rule(input, from, to(resolvers), port53(protocol), accept)
	}
	p.rule(input, from, refuse)

	forward := p.chain("forward", nftables.ChainHookForward)
	p.rule(forward, from, p.link(expr.MetaKeyOIFNAME, expr.CmpOpEq), refuse)
	for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		p.rule(forward, from, to(resolvers), port53(protocol), accept)
	}
	p.rule(forward, from, inPrefix(16, linkLocal), refuse)
	p.rule(forward, from, to(allowed), accept)
	p.rule(forward, from, to(refused), refuse)
	toCell := p.link(expr.MetaKeyOIFNAME, expr.CmpOpEq)
	p.rule(forward, toCell, answers(), accept)
	p.rule(forward, toCell, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	return nil
}

func (p *policy) masquerade(subnet netip.Prefix) {
	chain := p.conn.AddChain(&nftables.Chain{
		Table: p.table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	p.rule(chain, inPrefix(12, subnet), p.link(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})
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

func inPrefix(offset uint32, p netip.Prefix) []expr.Any {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return []expr.Any{
		address(offset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func port53(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
	}
}

// answers matches packets of connections that exist.
func answers() []expr.Any {
	states := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: states, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// removePolicy deletes the table; one that is not there is no error.
func removePolicy(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName(name)})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", tableName(name), err)
	}
	return nil
}
