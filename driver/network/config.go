package network

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/leapcell/leapcell"
)

// Config is what a [Pool] needs to know.
type Config struct {
	Name        string         // of the platform; up to 8 letters and digits, unique on this machine
	Subnet      netip.Prefix   // IPv4; every namespace takes four addresses of it
	Size        int            // namespaces kept ready
	AllowEgress []netip.Prefix // private ranges that cells may reach all the same
	DenyEgress  []netip.Prefix // refused before anything is allowed: other hosts of the platform, for example
	Nameservers []netip.Addr   // IPv4; empty: read from the host's resolv.conf. One on loopback must be alone
	Log         *slog.Logger
}

// nameFormat leaves room for two letters, a hyphen and a number in the 15 characters of a link's name.
var nameFormat = regexp.MustCompile(`^[A-Za-z0-9]{1,8}$`)

func (c Config) validate() error {
	switch {
	case !nameFormat.MatchString(c.Name):
		return leapcell.Errorf(leapcell.CodeInvalid, "network name %q: 1 to 8 letters and digits are allowed", c.Name)
	case !c.Subnet.IsValid() || !c.Subnet.Addr().Is4() || c.Subnet.Bits() > 28 || c.Subnet.Bits() < 8:
		return leapcell.Errorf(leapcell.CodeInvalid, "network subnet %q: an IPv4 prefix from /8 to /28 is needed", c.Subnet)
	case c.Size < 0:
		return leapcell.Errorf(leapcell.CodeInvalid, "network pool size is %d: it must not be negative", c.Size)
	}
	for what, list := range map[string][]netip.Prefix{"allowed": c.AllowEgress, "denied": c.DenyEgress} {
		for _, p := range list {
			if !p.IsValid() || !p.Addr().Is4() {
				return leapcell.Errorf(leapcell.CodeInvalid, "%s egress %q: an IPv4 prefix is needed", what, p)
			}
		}
	}
	for _, a := range c.Nameservers {
		if !a.Is4() {
			return leapcell.Errorf(leapcell.CodeInvalid, "nameserver %q: an IPv4 address is needed", a)
		}
		if a.IsLoopback() && len(c.Nameservers) > 1 {
			return leapcell.Errorf(leapcell.CodeInvalid, "nameservers %v: one on loopback must be the only one", c.Nameservers)
		}
	}
	return nil
}

// The names of what one platform has on a machine.
func linkPrefix(name string) string  { return "lc" + name + "-" }
func netnsPrefix(name string) string { return "leapcell-" + name + "-" }
func tableName(name string) string   { return "leapcell_" + name }

// resolvConfs are where the host says who resolves names, in order: the second is what
// systemd-resolved itself asks when the first names its own loopback address.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// publicResolvers are asked when the host names nobody that a cell can reach.
var publicResolvers = []netip.Addr{netip.AddrFrom4([4]byte{1, 1, 1, 1}), netip.AddrFrom4([4]byte{8, 8, 8, 8})}

// dns is who resolves names for cells.
type dns struct {
	servers []netip.Addr // as cells know them
	// local is the host's own resolver when it listens on loopback, which means another thing
	// inside: cells ask relay, an address of the subnet that nobody has, and the host's NAT
	// leads them to local.
	local, relay netip.Addr
}

// resolvers decides who that is.
func (c Config) resolvers() dns {
	list := c.Nameservers
	if len(list) == 0 {
		list = nameservers(c.Log, resolvConfs)
	}
	if list[0].IsLoopback() {
		relay := address4(c.Subnet, c.slots()*4+2)
		return dns{servers: []netip.Addr{relay}, local: list[0], relay: relay}
	}
	return dns{servers: list}
}

// slots is how many namespaces the subnet has addresses for. The last four are not a
// namespace's: see [dns].
func (c Config) slots() int { return 1<<(30-c.Subnet.Bits()) - 1 }

// nameservers are those of the first file that names one which is not loopback; failing
// that, one that is.
func nameservers(log *slog.Logger, names []string) []netip.Addr {
	var local []netip.Addr
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var list []netip.Addr
		for _, a := range parseResolvConf(text) {
			if a.IsLoopback() {
				local = append(local, a)
			} else {
				list = append(list, a)
			}
		}
		if len(list) > 0 {
			return list
		}
	}
	if len(local) > 0 {
		return local[:1]
	}
	log.Warn("the host has no nameserver that instances can reach: they ask public ones; name an IPv4 one in the host's resolv.conf",
		"read", names, "using", publicResolvers)
	return publicResolvers
}

// parseResolvConf gives the IPv4 nameservers.
func parseResolvConf(text []byte) []netip.Addr {
	var list []netip.Addr
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(f[1])
		if err == nil && addr.Is4() && !addr.IsUnspecified() {
			list = append(list, addr)
		}
	}
	return list
}

func resolvConf(servers []netip.Addr) []byte {
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.Bytes()
}
