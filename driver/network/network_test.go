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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

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
	}
	for what, address := range refused {
		if _, err := call(t, n, address); err == nil {
			t.Errorf("%s (%s) can be reached", what, address)
		}
	}
}

func TestEgressAllowed(t *testing.T) {
	near := outside(t, "10.98.76.52/30")
	serve(t, near, "10.98.76.54:80")
	p := testPool(t, func(c *Config) {
		c.AllowEgress = []netip.Prefix{netip.MustParsePrefix("10.98.0.0/16"), netip.MustParsePrefix("10.98.76.0/24"), netip.MustParsePrefix("169.254.0.0/16")}
	})
	n := get(t, p)
	if _, err := call(t, n, "10.98.76.54:80"); err != nil {
		t.Errorf("an allowed range cannot be reached: %v", err)
	}
	if _, err := call(t, n, "169.254.169.254:80"); err == nil || !strings.Contains(err.Error(), "no route to host") && !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("cloud metadata gives %v, want a refusal", err)
	}
}

func TestPutRecyclesCleanOnly(t *testing.T) {
	p := testPool(t, nil)
	clean, dirty := get(t, p), get(t, p)
	l := serve(t, dirty, "127.0.0.1:8080")
	if _, err := call(t, dirty, "127.0.0.1:8080"); err != nil {
		t.Fatal(err)
	}
	l.Close() // what is left is a connection in TIME_WAIT
	p.Put(dirty)
	p.Put(clean)
	p.work.Wait()
	var names []string
	for range len(p.ready) {
		names = append(names, get(t, p).Name)
	}
	if slices.Contains(names, dirty.Name) {
		t.Error("a namespace with a socket in it is given out again")
	}
	if !slices.Contains(names, clean.Name) {
		t.Errorf("the clean namespace %s is not given out again, but %v", clean.Name, names)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, dirty.Name)); err == nil {
		t.Error("the used namespace is left")
	}
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
	links, err := netlink.LinkList()
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
	for range 4 {
		get(t, p)
	}
	if _, err := p.Get(t.Context()); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("error is %v, want unavailable", err)
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf([]byte("# x\nnameserver 127.0.0.53\nsearch a\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\nnameserver 8.8.4.4 \n"))
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("8.8.4.4")}
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
	if got := nameservers(log, []string{stub}); !slices.Equal(got, publicResolvers) {
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
