package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
)

// Config is what a [Pool] needs to know.
type Config struct {
	Name        string         // of the platform; short, unique on this machine
	Subnet      netip.Prefix   // every namespace takes four addresses of it
	Size        int            // namespaces kept ready
	AllowEgress []netip.Prefix // private ranges that cells may reach
	Nameservers []netip.Addr   // empty: read from the host's resolv.conf
	Log         *slog.Logger
}

// Pool keeps network namespaces ready.
type Pool struct{}

// Namespace is one network namespace with its link to the host.
type Namespace struct {
	Name string
	Path string     // the bind mount that keeps it: what a runtime joins
	Addr netip.Addr // its address inside
}

// New makes the pool and the platform's nftables table.
func New(cfg Config) (*Pool, error) { return nil, errors.ErrUnsupported }

// Get takes a namespace out of the pool, making one when none is ready.
func (p *Pool) Get(ctx context.Context) (*Namespace, error) { return nil, errors.ErrUnsupported }

// Adopt takes the namespace of that name, left by an earlier process, into use again.
func (p *Pool) Adopt(name string) (*Namespace, error) { return nil, errors.ErrUnsupported }

// Put gives a namespace back.
func (p *Pool) Put(ns *Namespace) {}

// Close removes all namespaces that are not handed out.
func (p *Pool) Close() error { return errors.ErrUnsupported }

// ResolvConf is the content of /etc/resolv.conf inside.
func (p *Pool) ResolvConf() []byte { return nil }

// Dial connects from inside the namespace.
func (n *Namespace) Dial(ctx context.Context, address string) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

// Destroy removes everything of the platform name: links, namespaces, nftables table.
func Destroy(name string) error { return errors.ErrUnsupported }
