package network

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

var (
	testName   = "t" + strconv.FormatInt(int64(os.Getpid()), 36)
	testSubnet = netip.MustParsePrefix("100.127.240.0/24")
)

func testConfig(t testing.TB) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and nftables")
	}
	return Config{Name: testName, Subnet: testSubnet, Size: 1, Nameservers: []netip.Addr{netip.MustParseAddr("10.98.76.54")}, Log: slog.New(slog.DiscardHandler)}
}

func testPool(t testing.TB, change func(*Config)) *Pool {
	t.Helper()
	cfg := testConfig(t)
	if change != nil {
		change(&cfg)
	}
	t.Cleanup(func() {
		if err := Destroy(cfg.Name); err != nil {
			t.Error(err)
		}
	})
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func get(t testing.TB, p *Pool) *Namespace {
	t.Helper()
	n, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// outside is a namespace that plays a machine elsewhere: it has a link, but no policy guards it.
func outside(t *testing.T, subnet string) *Namespace {
	t.Helper()
	cfg := testConfig(t)
	cfg.Name, cfg.Subnet = "o"+testName[1:], netip.MustParsePrefix(subnet)
	n, err := makeNamespace(cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(remove(cfg.Name, n), Destroy(cfg.Name)); err != nil {
			t.Error(err)
		}
	})
	return n
}

// serve answers in the namespace with the address that it sees as the caller's.
func serve(t *testing.T, n *Namespace, address string) net.Listener {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}
	var err error
	if n == nil {
		err = listen()
	} else {
		err = inside(n.fd, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			io.WriteString(c, host)
			c.Close()
		}
	}()
	return l
}

// call dials from inside n and gives what it is told.
func call(t *testing.T, n *Namespace, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := n.Dial(ctx, address)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialling %s hangs: it must be refused", address)
		}
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), nil
}

func TestDialReachesLoopback(t *testing.T) {
	p := testPool(t, nil)
	n := get(t, p)
	for _, address := range []string{"127.0.0.1:8080", "[::1]:8080", n.Addr.String() + ":80"} {
		serve(t, n, address)
		if _, err := call(t, n, address); err != nil {
			t.Errorf("dial %s: %v", address, err)
		}
	}
	if _, err := call(t, n, "127.0.0.1:9"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("dialling a closed port gives %v, want connection refused", err)
	}
}

func TestEgress(t *testing.T) {
	far := outside(t, "198.51.100.0/28")
	serve(t, far, "198.51.100.2:80")
	p := testPool(t, nil)
	n := get(t, p)
	caller, err := call(t, n, "198.51.100.2:80")
	if err != nil {
		t.Fatalf("the internet cannot be reached: %v", err)
	}
	if caller != "198.51.100.1" {
		t.Errorf("the far end sees %s, want the host's own address", caller)
	}
}

func TestEgressRefused(t *testing.T) {
	near := outside(t, "10.98.76.52/30")
	serve(t, near, "10.98.76.54:80")
	serve(t, near, "10.98.76.54:53")
	p := testPool(t, nil)
	n, other := get(t, p), get(t, p)
	serve(t, other, other.Addr.String()+":80")
	host := serve(t, nil, "0.0.0.0:0")
	port := strconv.Itoa(host.Addr().(*net.TCPAddr).Port)

	if _, err := call(t, n, "10.98.76.54:53"); err != nil {
		t.Errorf("the nameserver cannot be reached: %v", err)
	}
	refused := map[string]string{
		"a private address":        "10.98.76.54:80",
		"another cell":             other.Addr.String() + ":80",
		"the host by its link":     n.Addr.Prev().String() + ":" + port,
		"the host by another link": "10.98.76.53:" + port,
		"cloud metadata":           "169.254.169.254:80",
		"Azure's wire server":      "168.63.129.16:80",
		"Alibaba's metadata":       "100.100.100.200:80",
	}
	for what, address := range refused {
		for range 10 { // more often than the kernel sends ICMP errors
			if _, err := call(t, n, address); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s (%s): %v, want it refused", what, address, err)
			}
		}
	}
}

// listenPacket makes a UDP socket in n, or on the host when that is nil.
func listenPacket(t *testing.T, n *Namespace, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	listen := func() (err error) {
		c, err = net.ListenPacket("udp4", address)
		return err
	}
	var err error
	if n == nil {
		err = listen()
	} else {
		err = inside(n.fd, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a datagram from inside n and gives what comes back.
func ask(t *testing.T, n *Namespace, address string, set func(fd int) error) (string, error) {
	t.Helper()
	var c net.Conn
	if err := inside(n.fd, func() (err error) {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			if set != nil {
				e := raw.Control(func(fd uintptr) { err = set(int(fd)) })
				err = errors.Join(err, e)
			}
			return err
		}}
		c, err = d.Dial("udp4", address)
		return err
	}); err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(c, "question"); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	k, err := c.Read(b)
	return string(b[:k]), err
}

// reply answers every datagram.
func reply(c net.PacketConn) {
	b := make([]byte, 100)
	for {
		_, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo([]byte("answer to "+from.(*net.UDPAddr).IP.String()), from)
	}
}

func TestEgressRefusesOptionsAndDatagrams(t *testing.T) {
	far := outside(t, "198.51.100.0/28")
	go reply(listenPacket(t, far, "198.51.100.2:7"))
	host := listenPacket(t, nil, "0.0.0.0:0")
	go reply(host)
	port := strconv.Itoa(host.LocalAddr().(*net.UDPAddr).Port)
	p := testPool(t, nil)
	n := get(t, p)
	if got, err := ask(t, n, "198.51.100.2:7", nil); err != nil || got != "answer to 198.51.100.1" {
		t.Fatalf("the far end answers %q, %v", got, err)
	}
	// A loose source route over the far end, as any process may set it.
	route := func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x83\x0b\x04\xc6\x33\x64\x02\x0a\x62\x4c\x36\x00")
	}
	for what, try := range map[string]func() (string, error){
		"the host by UDP":            func() (string, error) { return ask(t, n, n.Addr.Prev().String()+":"+port, nil) },
		"the host by UDP on port 53": func() (string, error) { return ask(t, n, n.Addr.Prev().String()+":53", nil) },
	} {
		if got, err := try(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %q, %v, want it refused", what, got, err)
		}
	}
	// The kernel has no error for this one that would reach the sender.
	if got, err := ask(t, n, "198.51.100.2:7", route); err == nil {
		t.Errorf("a source route passed: %q", got)
	}
}

// A source that is not the cell's own leads nowhere: neither over the way that other cells
// take nor to them.
func TestEgressDropsForeignSources(t *testing.T) {
	far := outside(t, "198.51.100.0/28")
	sink := listenPacket(t, far, "198.51.100.2:7")
	p := testPool(t, nil)
	n, other := get(t, p), get(t, p)
	for _, source := range []string{other.Addr.String(), "203.0.113.9", "127.0.0.1", "198.51.100.1"} {
		spoof(t, n, source, "198.51.100.2")
	}
	go reply(sink)
	// Only what was sent last, with its own source, arrives; the others would have come before.
	if got, err := ask(t, n, "198.51.100.2:7", nil); err != nil || got != "answer to 198.51.100.1" {
		t.Errorf("the far end answers %q, %v", got, err)
	}
	for _, a := range []netip.Addr{other.Addr, netip.MustParseAddr("203.0.113.9")} {
		if k := tracked(t, a); k > 0 {
			t.Errorf("%d connections of the foreign source %s passed", k, a)
		}
	}
}

// spoof sends a datagram to port 7 with a raw socket, which a cell cannot have.
func spoof(t *testing.T, n *Namespace, source, target string) {
	t.Helper()
	from, to := netip.MustParseAddr(source).As4(), netip.MustParseAddr(target).As4()
	packet := slices.Concat([]byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, from[:], to[:], []byte{0, 9, 0, 7, 0, 9, 0, 0, 'x'})
	err := inside(n.fd, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to})
	})
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		t.Fatalf("sending from %s: %v", source, err)
	}
}

// A host whose resolver listens on loopback, as with systemd-resolved or dnsmasq.
func TestResolverOnLoopback(t *testing.T) {
	local := listenPacket(t, nil, "127.98.76.54:53")
	go reply(local)
	serve(t, nil, "127.98.76.54:53")
	serve(t, nil, "127.98.76.54:54")
	p := testPool(t, func(c *Config) { c.Nameservers = []netip.Addr{netip.MustParseAddr("127.98.76.54")} })
	n := get(t, p)
	server, ok := strings.CutPrefix(strings.TrimSpace(string(p.ResolvConf())), "nameserver ")
	if !ok || !testSubnet.Contains(netip.MustParseAddr(server)) {
		t.Fatalf("cells are told %q", p.ResolvConf())
	}
	if got, err := ask(t, n, server+":53", nil); err != nil || got != "answer to 127.0.0.1" {
		t.Errorf("by UDP it answers %q, %v", got, err)
	}
	if got, err := call(t, n, server+":53"); err != nil || got != "127.0.0.1" {
		t.Errorf("by TCP it answers %q, %v", got, err)
	}
	for _, address := range []string{server + ":54", n.Addr.Prev().String() + ":53", n.Addr.Prev().String() + ":54"} {
		if got, err := call(t, n, address); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s answers %q, %v: more than DNS is open", address, got, err)
		}
	}
}

// One cell must not fill the table of connections that all share.
func TestFlowsAreLimited(t *testing.T) {
	far := outside(t, "198.51.100.0/28")
	go reply(listenPacket(t, far, "198.51.100.2:7"))
	p := testPool(t, nil)
	if err := writePolicy(p.cfg, p.names, 5); err != nil {
		t.Fatal(err)
	}
	n, other := get(t, p), get(t, p)
	for i := range 5 {
		if _, err := ask(t, n, "198.51.100.2:7", nil); err != nil {
			t.Errorf("connection %d of 5: %v", i+1, err)
		}
	}
	if got, err := ask(t, n, "198.51.100.2:7", nil); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("the sixth of 5 connections: %q, %v, want it refused", got, err)
	}
	if _, err := ask(t, other, "198.51.100.2:7", nil); err != nil {
		t.Errorf("another cell is refused as well: %v", err)
	}
}

func TestNoIPv6(t *testing.T) {
	p := testPool(t, nil)
	n := get(t, p)
	if err := inside(n.fd, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			addrs, err := l.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip := a.(*net.IPNet).IP; ip.To4() == nil && !ip.IsLoopback() {
					t.Errorf("%s has the address %s inside", l.Name, a)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	link, err := net.InterfaceByName(linkPrefix(testName) + strconv.Itoa(n.slot))
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := link.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.(*net.IPNet).IP.To4() == nil {
			t.Errorf("the host's end has the address %s", a)
		}
	}
	for _, address := range []string{"[fd00::2]:80", "[2001:db8::1]:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:80"} {
		if _, err := call(t, n, address); err == nil {
			t.Errorf("%s can be reached", address)
		}
	}
}

func TestEgressAllowed(t *testing.T) {
	near := outside(t, "10.98.76.52/30")
	serve(t, near, "10.98.76.54:80")
	p := testPool(t, func(c *Config) {
		c.DenyEgress = []netip.Prefix{netip.MustParsePrefix("10.98.77.0/24")}
		c.AllowEgress = []netip.Prefix{netip.MustParsePrefix("10.98.0.0/16"), netip.MustParsePrefix("10.98.76.0/24"), netip.MustParsePrefix("169.254.0.0/16")}
	})
	n := get(t, p)
	if _, err := call(t, n, "10.98.76.54:80"); err != nil {
		t.Errorf("an allowed range cannot be reached: %v", err)
	}
	if _, err := call(t, n, "10.98.77.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a denied range within an allowed one gives %v, want a refusal", err)
	}
	if _, err := call(t, n, "169.254.169.254:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("cloud metadata gives %v, want a refusal", err)
	}
}

// Whatever a cell left in its namespace goes with it: nobody gets it again.
func TestNamespaceServesOnce(t *testing.T) {
	p := testPool(t, func(c *Config) { c.Subnet = netip.MustParsePrefix("100.127.240.0/28") })
	n := get(t, p)
	kept, err := os.Open(n.Path) // its number is not used again meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	old, err := kept.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p.Put(n)
	p.work.Wait()
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Name == linkPrefix(testName)+strconv.Itoa(n.slot) {
			t.Errorf("the link %s of the used namespace is left", l.Attrs().Name)
		}
	}
	for range 6 { // past all three slots: names and addresses come again
		again := get(t, p)
		if now, err := again.fd.Stat(); err != nil || os.SameFile(old, now) {
			t.Fatalf("the used namespace is given out again (%v)", err)
		}
		p.Put(again)
		p.work.Wait()
	}
}

// What still arrives for a former cell must not reach the next one that has its address.
func TestFormerConnectionsAreForgotten(t *testing.T) {
	far := outside(t, "198.51.100.0/28")
	serve(t, far, "198.51.100.2:80")
	p := testPool(t, nil)
	n, stays := get(t, p), get(t, p)
	for _, one := range []*Namespace{n, stays} {
		if _, err := call(t, one, "198.51.100.2:80"); err != nil {
			t.Fatal(err)
		}
		if tracked(t, one.Addr) == 0 {
			t.Fatal("the host does not track the connection: this shows nothing")
		}
	}
	p.Put(n)
	p.work.Wait()
	if left := tracked(t, n.Addr); left > 0 {
		t.Errorf("%d connections of a former cell are remembered", left)
	}
	if tracked(t, stays.Addr) == 0 {
		t.Error("the connections of another cell were forgotten")
	}
}

func tracked(t *testing.T, a netip.Addr) int {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range flows {
		if (former{a: true}).MatchConntrackFlow(f) {
			n++
		}
	}
	return n
}

func TestPoolLeaksNothing(t *testing.T) {
	cycles := 1000
	if testing.Short() {
		cycles = 30
	}
	p := testPool(t, func(c *Config) { c.Subnet, c.Size = netip.MustParsePrefix("100.127.240.0/24"), 2 })
	cycle := func() {
		n := get(t, p)
		p.Put(n)
		p.work.Wait()
	}
	for range 5 {
		cycle()
	}
	before := counts(t)
	for range cycles {
		cycle()
	}
	after := counts(t)
	t.Logf("%d cycles: before %v, after %v", cycles, before, after)
	for what, n := range after {
		// The runtime makes threads as it likes, and goroutines that have said that they are
		// done may not be gone yet; but not one a cycle.
		if slack := map[string]int{"threads": 8, "goroutines": 4}[what]; n > before[what]+slack {
			t.Errorf("%s: %d before, %d after %d cycles", what, before[what], n, cycles)
		}
	}
}

// counts is what a pool could leave behind.
func counts(t *testing.T) map[string]int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(netnsDir, netnsPrefix(testName)+"*"))
	if err != nil {
		t.Fatal(err)
	}
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{"namespaces": len(names), "goroutines": runtime.NumGoroutine()}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, linkPrefix(testName)) {
			out["links"]++
		}
	}
	for what, dir := range map[string]string{"descriptors": "/proc/self/fd", "threads": "/proc/self/task"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		out[what] = len(entries)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		if c.Table.Name != tableName(testName) {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			t.Fatal(err)
		}
		out["rules"] += len(rules)
	}
	return out
}

func TestAdopt(t *testing.T) {
	p := testPool(t, nil)
	n := get(t, p)
	var cmd *exec.Cmd
	if err := inside(n.fd, func() error {
		cmd = exec.Command("sleep", "60")
		return cmd.Start()
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	serve(t, n, "127.0.0.1:8080")
	empty := get(t, p)

	next, err := New(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	again, err := next.Adopt(n.Name)
	if err != nil {
		t.Fatal(err)
	}
	if again.Addr != n.Addr {
		t.Errorf("adopted with address %s, want %s", again.Addr, n.Addr)
	}
	if _, err := call(t, again, "127.0.0.1:8080"); err != nil {
		t.Errorf("dial in an adopted namespace: %v", err)
	}
	if _, err := next.Adopt(empty.Name); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Errorf("adopting an empty namespace: %v, want not_found", err)
	}
	if got := get(t, next); got.Name == n.Name {
		t.Error("an adopted namespace is given out again")
	}
}

func TestDestroyLeavesNothing(t *testing.T) {
	p := testPool(t, nil)
	get(t, p)
	p.work.Wait()
	for range 2 {
		if err := Destroy(testName); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(netnsDir, netnsPrefix(testName)+"*")); len(left) > 0 {
		t.Errorf("namespaces are left: %v", left)
	}
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, linkPrefix(testName)) {
			t.Errorf("link %s is left", l.Attrs().Name)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == tableName(testName) {
			t.Error("the nftables table is left")
		}
	}
}

func TestSubnetExhausted(t *testing.T) {
	p := testPool(t, func(c *Config) { c.Subnet, c.Size = netip.MustParsePrefix("100.127.240.0/28"), 0 })
	for range 3 { // of four: the last addresses are the relay's
		get(t, p)
	}
	if _, err := p.Get(t.Context()); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("error is %v, want unavailable", err)
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf([]byte("# x\nnameserver 127.0.0.53\nsearch a\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\nnameserver 8.8.4.4 \n"))
	want := []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("8.8.4.4")}
	if !slices.Equal(got, want) {
		t.Errorf("nameservers are %v, want %v", got, want)
	}
}

func TestNameserversFallBack(t *testing.T) {
	dir := t.TempDir()
	stub, real := filepath.Join(dir, "stub"), filepath.Join(dir, "real")
	for name, text := range map[string]string{stub: "nameserver 127.0.0.53\n", real: "nameserver 192.0.2.9\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	if got := nameservers(log, []string{stub, real}); len(got) != 1 || got[0].String() != "192.0.2.9" {
		t.Errorf("nameservers are %v, want that of the second file", got)
	}
	if got := nameservers(log, []string{stub}); len(got) != 1 || got[0].String() != "127.0.0.53" {
		t.Errorf("nameservers are %v, want the host's own", got)
	}
	if got := nameservers(log, []string{filepath.Join(dir, "none")}); !slices.Equal(got, publicResolvers) {
		t.Errorf("nameservers are %v, want the public ones", got)
	}
}

func TestMerge(t *testing.T) {
	got := merge([]netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.0.0.0/15"), netip.MustParsePrefix("10.2.3.0/24"), netip.MustParsePrefix("224.0.0.0/3")})
	want := [][2]netip.Addr{
		{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.2.255.255")},
		{netip.MustParseAddr("224.0.0.0"), netip.MustParseAddr("255.255.255.255")},
	}
	if !slices.Equal(got, want) {
		t.Errorf("merged ranges are %v, want %v", got, want)
	}
}

func TestConfigValidate(t *testing.T) {
	good := Config{Name: "abc123", Subnet: testSubnet}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Config){
		"long name":       func(c *Config) { c.Name = "ninechars" },
		"hyphen":          func(c *Config) { c.Name = "a-b" },
		"small subnet":    func(c *Config) { c.Subnet = netip.MustParsePrefix("10.0.0.0/30") },
		"IPv6 subnet":     func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"two resolvers":   func(c *Config) { c.Nameservers = []netip.Addr{testSubnet.Addr(), netip.MustParseAddr("127.0.0.1")} },
		"IPv6 nameserver": func(c *Config) { c.Nameservers = []netip.Addr{netip.IPv6Loopback()} },
		"no egress range": func(c *Config) { c.AllowEgress = make([]netip.Prefix, 1) },
	} {
		c := good
		change(&c)
		if c.validate() == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	p := testPool(b, func(c *Config) { c.Size = 1 })
	p.work.Wait()
	b.Run("ready", func(b *testing.B) {
		for b.Loop() {
			n := get(b, p)
			b.StopTimer()
			p.Put(n)
			p.work.Wait()
			b.StartTimer()
		}
	})
	b.Run("made", func(b *testing.B) {
		for b.Loop() {
			n, err := makeNamespace(p.cfg, 60)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := remove(p.cfg.Name, n); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func BenchmarkDial(b *testing.B) {
	p := testPool(b, nil)
	n := get(b, p)
	var l net.Listener
	if err := inside(n.fd, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:8080"); return err }); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for b.Loop() {
		c, err := n.Dial(b.Context(), "127.0.0.1:8080")
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
