package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where namespaces are bound, so that `ip netns` shows them.
const netnsDir = "/run/netns"

// Namespace is one network namespace with its link to the host.
type Namespace struct {
	Name string
	Path string     // the bind mount that keeps it: what a runtime joins
	Addr netip.Addr // its address inside
	slot int
	fd   *os.File // of the namespace
}

// inside runs f on a thread that is in the namespace of fd and brings the thread back. f must
// not start goroutines or block for long.
func inside(fd *os.File, f func() error) error {
	runtime.LockOSThread()
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer host.Close()
	if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	failed := f()
	if err := unix.Setns(int(host.Fd()), unix.CLONE_NEWNET); err != nil {
		// Locked for ever: the thread must not run anything else, and ends with this goroutine.
		return errors.Join(failed, fmt.Errorf("leave network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return failed
}

// Dial opens a TCP connection from inside the namespace; address has an IP address and a port.
// Only the making of the socket happens on a thread inside, which costs microseconds.
func (n *Namespace) Dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %q in %s: %w", address, n.Name, err)
	}
	family, remote := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if to.Addr().Is4() {
		family, remote = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd := -1
	if err := inside(n.fd, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	}); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("dial %s in %s: %w", address, n.Name, err)
	}
	file := os.NewFile(uintptr(fd), "tcp:"+address)
	defer file.Close() // FileConn has a copy of it
	if err := connect(ctx, file, remote); err != nil {
		return nil, fmt.Errorf("dial %s in %s: %w", address, n.Name, err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("dial %s in %s: %w", address, n.Name, err)
	}
	conn.(*net.TCPConn).SetNoDelay(true)
	return conn, nil
}

// connect waits for the connection by the runtime's poller.
func connect(ctx context.Context, file *os.File, remote unix.Sockaddr) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Connect(int(fd), remote) }); err != nil {
		return err
	}
	if !errors.Is(failed, unix.EINPROGRESS) {
		return failed
	}
	stop := context.AfterFunc(ctx, func() { file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if failed = err; err == nil && code != 0 {
			failed = unix.Errno(code)
		}
		if failed != nil {
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // else not connected yet
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, failed)
}

// make creates the namespace of a slot with its link.
func makeNamespace(cfg Config, slot int) (n *Namespace, err error) {
	n = place(cfg, slot)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make network namespace %s: %w", n.Name, err), remove(cfg.Name, n))
		}
	}()
	// What a killed process left of it.
	if err := remove(cfg.Name, n); err != nil {
		return n, err
	}
	if err := n.create(); err != nil {
		return n, err
	}
	if n.fd, err = os.Open(n.Path); err != nil {
		return n, err
	}
	return n, n.connect(cfg, slot)
}

// place is the namespace of a slot, not made yet. Of its four addresses the second is the
// host's and the third its own.
func place(cfg Config, slot int) *Namespace {
	name := fmt.Sprintf("%s%d", netnsPrefix(cfg.Name), slot)
	return &Namespace{Name: name, Path: filepath.Join(netnsDir, name), Addr: address4(cfg.Subnet, slot*4+2), slot: slot}
}

func address4(subnet netip.Prefix, offset int) netip.Addr {
	a := subnet.Masked().Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	v += uint32(offset)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// sysctls are set inside, by a thread that is inside.
var sysctls = map[string]string{
	// No IPv6 but on loopback, where apps like to listen: the egress policy is for IPv4.
	"/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
	// A namespace has no privileged services: an app may listen on port 80.
	"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
}

// create makes an empty namespace on a thread of its own, which ends with it, and binds it to its path.
func (n *Namespace) create() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(n.Path, nil, 0o444); err != nil {
		return err
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			for name, value := range sysctls {
				if err := os.WriteFile(name, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			return unix.Mount("/proc/thread-self/ns/net", n.Path, "", unix.MS_BIND, "")
		}()
	}()
	return <-result
}

// connect joins the namespace to the host.
func (n *Namespace) connect(cfg Config, slot int) error {
	name := fmt.Sprintf("%s%d", linkPrefix(cfg.Name), slot)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.fd.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	if err := guard(name, cfg.resolvers().local.IsValid()); err != nil {
		return err
	}
	host := address4(cfg.Subnet, slot*4+1)
	if err := setUp(&netlink.Handle{}, name, host); err != nil {
		return err
	}
	in, err := netlink.NewHandleAt(netns.NsHandle(n.fd.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := setUp(in, "lo", netip.Addr{}); err != nil {
		return err
	}
	if err := setUp(in, "eth0", n.Addr); err != nil {
		return err
	}
	return in.RouteAdd(&netlink.Route{Gw: host.AsSlice()})
}

// guard sets what the host itself does with packets of a link, before it is turned on.
func guard(link string, local bool) error {
	set := [][2]string{
		{"ipv6/conf/" + link + "/disable_ipv6", "1"},
		{"ipv4/conf/" + link + "/rp_filter", "1"}, // a source that does not live there is not believed
		{"ipv4/conf/" + link + "/accept_redirects", "0"},
		{"ipv4/conf/" + link + "/send_redirects", "0"},
	}
	if local {
		// Lets the relay lead to the host's loopback. A cell cannot send to 127.0.0.0/8 over
		// its link, and all but DNS is refused on the way in.
		set = append(set, [2]string{"ipv4/conf/" + link + "/route_localnet", "1"})
	}
	for _, s := range set {
		if err := os.WriteFile("/proc/sys/net/"+s[0], []byte(s[1]), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("guard link %s: %w", link, err)
		}
	}
	return nil
}

// setUp gives a link its address, when there is one, and turns it on.
func setUp(h *netlink.Handle, name string, addr netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if addr.IsValid() {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(30, 32)}}
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, addr, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("turn on %s: %w", name, err)
	}
	return nil
}

// remove deletes the namespace and its link; what is not there is no error.
func remove(name string, n *Namespace) error {
	if n.fd != nil {
		n.fd.Close()
		n.fd = nil
	}
	return errors.Join(removeLink(fmt.Sprintf("%s%d", linkPrefix(name), n.slot)), removeMount(n.Path))
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

func removeMount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// occupied reports whether a process is in the namespace.
func (n *Namespace) occupied() (bool, error) {
	var own unix.Stat_t
	if err := unix.Fstat(int(n.fd.Fd()), &own); err != nil {
		return false, err
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	for _, p := range procs {
		if p.Name()[0] < '0' || p.Name()[0] > '9' {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", p.Name(), "ns/net"), &st) == nil && st.Ino == own.Ino && st.Dev == own.Dev {
			return true, nil
		}
	}
	return false, nil
}
