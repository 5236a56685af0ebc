package contract

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
	"github.com/leapcell/leapcell/test/harness"
	"github.com/leapcell/leapcell/test/soak"
)

// The internet of these tests is a network namespace with a public-looking address, of those
// that are kept for examples. It answers by TCP on port 80 and by UDP on port 7. The network is
// as small as can be: what this machine reaches in the rest of the range stays reachable.
const (
	internetHost = "198.51.100.129"
	internet     = "198.51.100.130"
	internetNet  = "198.51.100.128/30"
)

// elsewhere makes that namespace, or another machine with an address of one's own.
func elsewhere(t *testing.T, host, address string) {
	t.Helper()
	ready := make(chan error)
	namespace := make(chan *os.File, 1)
	linked := make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace in it
		f, err := newNetns()
		ready <- err
		if err != nil {
			return
		}
		namespace <- f
		<-linked
		ready <- answer(t, address)
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	f := <-namespace
	defer f.Close()
	err := link(t, f, host, address)
	close(linked)
	if err = errors.Join(err, <-ready); err != nil {
		t.Fatal(err)
	}
}

// newNetns moves this thread into a new network namespace.
func newNetns() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/net")
}

// link joins the namespace to this machine.
func link(t *testing.T, ns *os.File, host, address string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("far%d", binary.BigEndian.Uint16(netip.MustParseAddr(address).AsSlice()[2:]))
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s: %w", attrs.Name, err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Errorf("link %s: %v", attrs.Name, err)
		}
	})
	addr, err := netlink.ParseAddr(host + "/30")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(veth, addr), netlink.LinkSetUp(veth))
}

// answer serves from this thread's namespace.
func answer(t *testing.T, address string) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address + "/30")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(eth0, addr), netlink.LinkSetUp(eth0)); err != nil {
		return err
	}
	l, err := net.Listen("tcp4", address+":80")
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp4", address+":7")
	if err != nil {
		return errors.Join(err, l.Close())
	}
	t.Cleanup(func() { _, _ = l.Close(), c.Close() })
	serveBoth(l, c)
	return nil
}

// serveBoth accepts connections and returns datagrams until both are closed.
func serveBoth(l net.Listener, c net.PacketConn) {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			_, _ = io.WriteString(conn, host)
			_ = conn.Close()
		}
	}()
	go func() {
		b := make([]byte, 1<<16)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte("answer"), from)
		}
	}()
}

// host opens a port on every address of this machine, IPv6 too, and gives its number.
func host(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	c, err := net.ListenPacket("udp", ":"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close(), c.Close() })
	serveBoth(l, c)
	return port
}

type reached struct {
	Err string
	MS  float64
}

func reach(t *testing.T, s *harness.Service, params url.Values, to []string) map[string]reached {
	t.Helper()
	out := map[string]reached{}
	for some := range slices.Chunk(to, 50) {
		q := url.Values{"to": some}
		for k, v := range params {
			q[k] = v
		}
		s.Read(t, "/reach?"+q.Encode(), &out)
	}
	if len(out) == 0 {
		t.Fatal("nothing was tried")
	}
	return out
}

// refusals are how an instance is told at once that something is not for it.
var refusals = []string{"connection refused", "no route to host", "network is unreachable", "cannot assign requested address", "EACCES", "EINVAL", "EPERM"}

func mustRefuse(t *testing.T, results map[string]reached) {
	t.Helper()
	slowest := 0.0
	for to, r := range results {
		switch slowest = max(slowest, r.MS); {
		case r.Err == "":
			t.Errorf("%s can be reached", to)
		case !slices.Contains(refusals, r.Err):
			t.Errorf("%s: %s after %.0f ms, want it refused at once", to, r.Err, r.MS)
		}
	}
	t.Logf("%d addresses refused, the slowest after %.1f ms", len(results), slowest)
}

func TestMust_ID4_InternetIsReachable(t *testing.T) {
	elsewhere(t, internetHost, internet)
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		for to, r := range reach(t, s, nil, []string{internet + ":80"}) {
			if r.Err != "" {
				t.Errorf("%s by TCP: %s", to, r.Err)
			}
		}
		for _, size := range []string{"10", "4000"} { // the second travels in fragments
			for to, r := range reach(t, s, url.Values{"udp": {"1"}, "size": {size}}, []string{internet + ":7"}) {
				if r.Err != "" {
					t.Errorf("%s by UDP, %s bytes: %s", to, size, r.Err)
				}
			}
		}
	})
}

func TestMust_ID4_NamesAreResolved(t *testing.T) {
	s := harness.Get(t).Probe(t, harness.Spec{})
	var conf struct{ Text string }
	s.Read(t, "/read?path=/etc/resolv.conf", &conf)
	var servers []string
	for line := range strings.Lines(conf.Text) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			servers = append(servers, net.JoinHostPort(f[1], "53"))
		}
	}
	if len(servers) == 0 {
		t.Fatalf("/etc/resolv.conf names no server: %q", conf.Text)
	}
	asked := 0
	for _, server := range servers {
		for _, network := range []string{"udp", "tcp"} {
			if !answersHere(network, server) {
				t.Logf("%s does not answer this machine by %s either", server, network)
				continue
			}
			asked++
			q := url.Values{"server": {server}}
			if network == "tcp" {
				q.Set("tcp", "1")
			}
			var r struct {
				Err   string
				Known bool
			}
			if s.Read(t, "/ask?"+q.Encode(), &r); r.Err != "" || !r.Known {
				t.Errorf("%s by %s: %q, understood: %v", server, network, r.Err, r.Known)
			}
		}
	}
	if asked == 0 {
		t.Skip("no name server answers this machine")
	}
}

// answersHere asks for the name servers of the root, as the probe app does.
func answersHere(network, server string) bool {
	c, err := net.DialTimeout(network, server, 3*time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	question := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}
	if network == "tcp" {
		question = append([]byte{0, byte(len(question))}, question...)
	}
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write(question); err != nil {
		return false
	}
	answer := make([]byte, len(question)) // some other service may have the port
	_, err = io.ReadFull(c, answer)
	return err == nil && bytes.Contains(answer, []byte{0x12, 0x34})
}

// instanceAddress is the address of an instance in its own network.
func instanceAddress(t *testing.T, s *harness.Service) netip.Addr {
	t.Helper()
	var links map[string][]string
	s.Read(t, "/net", &links)
	for _, a := range links["eth0"] {
		if p, err := netip.ParsePrefix(a); err == nil && p.Addr().Is4() {
			return p.Addr()
		}
	}
	t.Fatalf("the instance has no address: %v", links)
	return netip.Addr{}
}

// hostAddresses are all of this machine.
func hostAddresses(t *testing.T) []netip.Addr {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			out = append(out, p.Addr())
		}
	}
	return out
}

func TestMust_ID4_HostAndPlatformAreRefused(t *testing.T) {
	t.Parallel()
	port := strconv.Itoa(host(t))
	if c, err := net.Dial("tcp", net.JoinHostPort(hostAddresses(t)[0].String(), port)); err != nil {
		t.Fatalf("the port is closed even here: %v", err)
	} else {
		_ = c.Close()
	}
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		gateway := instanceAddress(t, s).Prev()
		p := harness.Get(t).Config.Ports
		ports := []int{p.Edge, p.API, p.Registry, p.Nomad, p.NomadRPC, p.NomadSerf, p.Vault, p.VaultCluster, 22, 53}
		for _, a := range s.Allocs(t) {
			alloc, _, err := harness.Get(t).Nomad.Allocations().Info(a.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range alloc.AllocatedResources.Shared.Ports {
				ports = append(ports, l.Value) // its own gate
			}
		}
		var to []string
		for _, a := range append(hostAddresses(t), gateway) {
			address := a.String()
			if a.Is6() && a.IsLinkLocalUnicast() {
				address += "%eth0"
			}
			to = append(to, net.JoinHostPort(address, port))
			if a.Is4() {
				to = append(to, net.JoinHostPort("::ffff:"+address, port))
			}
		}
		for _, number := range ports {
			to = append(to, net.JoinHostPort(gateway.String(), strconv.Itoa(number)))
		}
		mustRefuse(t, reach(t, s, nil, to))
		// Datagrams, some in fragments. The kernel answers a few a second.
		mustRefuse(t, reach(t, s, url.Values{"udp": {"1"}}, []string{net.JoinHostPort(gateway.String(), port)}))
		mustRefuse(t, reach(t, s, url.Values{"udp": {"1"}, "size": {"4000"}}, []string{net.JoinHostPort(gateway.String(), port)}))
	})
}

func TestMust_ID4_PrivateRangesAndNeighboursAreRefused(t *testing.T) {
	t.Parallel()
	elsewhere(t, "10.98.75.1", "10.98.75.2") // one that would answer
	neighbour := instanceAddress(t, harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent}}))
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		mustRefuse(t, reach(t, s, nil, []string{
			"169.254.169.254:80", "169.254.170.2:80", "169.254.0.1:80", // cloud metadata and all link-local
			"100.100.100.200:80", "168.63.129.16:80", "192.0.0.192:80", // metadata elsewhere
			"[::ffff:169.254.169.254]:80", "[fd00:ec2::254]:80", "[fd20:ce::254]:80", "[fe80::1%eth0]:80", "[64:ff9b::a9fe:a9fe]:80", "[2001:db8::1]:80",
			neighbour.String() + ":8080", "[::ffff:" + neighbour.String() + "]:8080",
			"10.98.75.2:80", "10.0.0.1:80", "172.16.0.1:80", "192.168.0.1:80", "100.64.0.1:80", "198.18.0.1:80", "192.0.0.1:80",
			"224.0.0.1:80", "240.0.0.1:80", "255.255.255.255:80",
		}))
		mustRefuse(t, reach(t, s, url.Values{"udp": {"1"}}, []string{"10.98.75.2:7", neighbour.String() + ":7", "169.254.169.254:53"}))
	})
}

func TestMust_ID4_NoIPv6ButLoopback(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	for _, name := range []string{"if_inet6", "ipv6_route"} {
		var r struct{ Err, Text string }
		s.Read(t, "/read?path=/proc/self/net/"+name, &r)
		for line := range strings.Lines(r.Text) {
			if f := strings.Fields(line); f[len(f)-1] != "lo" {
				t.Errorf("%s has %s", name, strings.TrimSpace(line))
			}
		}
	}
}

func TestMust_ID4_NobodyPretendsToBeElsewhere(t *testing.T) {
	t.Parallel()
	elsewhere(t, internetHost, internet)
	s := harness.Get(t).Probe(t, harness.Spec{})
	try := func(q url.Values) string {
		var r struct{ Err string }
		q.Set("to", internet+":7")
		s.Read(t, "/pretend?"+q.Encode(), &r)
		return r.Err
	}
	if got := try(url.Values{}); got != "" {
		t.Fatalf("without pretending: %s", got)
	}
	for _, source := range []string{"198.51.100.77", internetHost, instanceAddress(t, s).Prev().String(), "127.0.0.1"} {
		if try(url.Values{"source": {source}}) == "" {
			t.Errorf("it sent from %s and got an answer", source)
		}
	}
	far := netip.MustParseAddr(internet).As4()
	for what, route := range map[string]string{
		"loose source route":  "\x83\x0b\x04" + string(far[:]) + "\x0a\x62\x4b\x02\x00",
		"strict source route": "\x89\x0b\x04" + string(far[:]) + "\x0a\x62\x4b\x02\x00",
		"record route":        "\x07\x0b\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		if try(url.Values{"options": {route}}) == "" {
			t.Errorf("a packet with a %s was answered", what)
		}
	}
}

// An operator's lists, on a node of its own with the same probe app.
func TestMust_ID4_ListsOfTheOperator(t *testing.T) {
	elsewhere(t, "10.98.75.1", "10.98.75.2")
	elsewhere(t, internetHost, internet)
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{})
	node := soak.NewNode(t, p, func(c *supervisor.Config) {
		c.AllowEgress, c.DenyEgress = []string{"10.98.0.0/16", "169.254.0.0/16"}, []string{internetNet}
	})
	s.Reload(t)
	i, err := node.Start(t.Context(), p.Deployment(t, s.Live).Image, leapcell.TaskServerless)
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"10.98.75.2:80":      "", // allowed
		internet + ":80":     "connection refused",
		"169.254.169.254:80": "connection refused", // never allowed
		"10.99.0.1:80":       "connection refused",
	} {
		body, err := i.Get(t.Context(), "/reach?to="+url.QueryEscape(to))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(body, fmt.Sprintf(`{"err":%q,`, want)) {
			t.Errorf("%s gives %s, want %q", to, body, want)
		}
	}
	if err := i.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
