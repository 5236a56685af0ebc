package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second
	maxRedirects  = 5
)

// Networks are the private networks that may be reached all the same. The zero value
// allows public addresses only.
type Networks []netip.Prefix

// ParseNetworks reads a list such as "10.1.0.0/16,127.0.0.1".
func ParseNetworks(text string) (Networks, error) {
	var out Networks
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			a, addrErr := netip.ParseAddr(part)
			if addrErr != nil {
				return nil, fmt.Errorf("%q is no network such as 10.1.0.0/16", part)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// String writes the list as ParseNetworks reads it.
func (n Networks) String() string {
	parts := make([]string, len(n))
	for i, p := range n {
		parts[i] = p.String()
	}
	return strings.Join(parts, ",")
}

// special are ranges that lead to no public host, beside those that net/netip knows by name.
// Those that carry an IPv4 address within an IPv6 one could lead to any of the others.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("fec0::/10"),
}

// Allows reports whether a may be connected to.
func (n Networks) Allows(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range n {
		if p.Contains(a) {
			return true
		}
	}
	if !a.IsValid() || a.IsLoopback() || a.IsPrivate() || a.IsUnspecified() || a.IsMulticast() ||
		a.IsLinkLocalUnicast() || a.IsInterfaceLocalMulticast() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// errRefused is a refused address.
func errRefused(address string) error {
	return leapcell.Errorf(leapcell.CodeUnprocessable, "the address %s is not public: ask the operator to allow its network (--source-networks of leapcelld)", address)
}

// Dial connects to address, by TCP.
func (n Networks) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second, Control: n.control}
	conn, err := d.DialContext(ctx, network, address)
	var known *leapcell.Error
	if errors.As(err, &known) {
		return nil, known // without what the dialer puts around it
	}
	return conn, err
}

// control is called with the address that was looked up, before it is connected to.
func (n Networks) control(network, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") || !n.Allows(at.Addr()) {
		return errRefused(address)
	}
	return nil
}

// Client makes an HTTP client that stays on the host it was sent to: a redirect to another
// one, or from https to http, is refused. timeout bounds a whole call; 0 leaves that to the
// context.
func (n Networks) Client(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			// No proxy: it would look names up by itself, behind our back.
			DialContext: n.Dial, TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: headerTimeout,
			IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 2, ForceAttemptHTTP2: true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: sameHost,
	}
}

func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) > maxRedirects:
		return leapcell.Errorf(leapcell.CodeUnprocessable, "%s redirects more than %d times", first.Host, maxRedirects)
	case req.URL.Hostname() != first.Hostname():
		return leapcell.Errorf(leapcell.CodeUnprocessable, "%s redirects to %s: use that address itself", first.Host, req.URL.Host)
	case first.Scheme == "https" && req.URL.Scheme != "https":
		return leapcell.Errorf(leapcell.CodeUnprocessable, "%s redirects from https to %s", first.Host, req.URL.Scheme)
	}
	return nil
}
