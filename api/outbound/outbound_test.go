package outbound

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestOnlyPublicAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1::1": true, "172.32.0.1": true, "100.128.0.1": true,
		"127.0.0.1": false, "127.8.8.8": false, "0.0.0.0": false, "10.0.0.1": false, "172.16.0.1": false,
		"192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "224.0.0.1": false,
		"255.255.255.255": false, "198.18.0.1": false, "::1": false, "::": false, "fe80::1%eth0": false,
		"fc00::1": false, "fd12::1": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false,
		"64:ff9b::7f00:1": false, "2002:7f00:1::": false, "ff02::1": false, "fec0::1": false,
	} {
		if got := (Networks(nil)).Allows(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: allowed is %v, want %v", text, got, want)
		}
	}
	if (Networks(nil)).Allows(netip.Addr{}) {
		t.Error("no address at all is allowed")
	}
}

func TestNetworksAreAllowed(t *testing.T) {
	n, err := ParseNetworks(" 10.1.2.3/16, 127.0.0.1,")
	if err != nil {
		t.Fatal(err)
	}
	if n.String() != "10.1.0.0/16,127.0.0.1/32" {
		t.Errorf("read as %s", n)
	}
	for text, want := range map[string]bool{
		"10.1.9.9": true, "10.2.0.1": false, "127.0.0.1": true, "127.0.0.2": false, "::ffff:10.1.0.1": true, "169.254.169.254": false,
	} {
		if got := n.Allows(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: allowed is %v, want %v", text, got, want)
		}
	}
	if _, err := ParseNetworks("intranet"); err == nil {
		t.Error("a name was taken for a network")
	}
}

// A name is checked by what it leads to, at the moment of the connection.
func TestNamesAreCheckedByAddress(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	_, err := Networks(nil).Client(time.Minute).Get("http://localhost:" + port)
	if err == nil || !strings.Contains(err.Error(), "is not public") || leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Errorf("error is %v", err)
	}
	allowed, _ := ParseNetworks("127.0.0.0/8,::1")
	resp, err := allowed.Client(time.Minute).Get("http://localhost:" + port)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestRedirectsStayOnTheHost(t *testing.T) {
	var to string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/there" {
			return
		}
		http.Redirect(w, r, to, http.StatusFound)
	}))
	defer s.Close()
	allowed, _ := ParseNetworks("127.0.0.0/8")
	for target, want := range map[string]string{
		"/there": "", "/again": "more than 5 times", "http://other.example/": "use that address itself",
	} {
		to = target
		resp, err := allowed.Client(time.Minute).Get(s.URL + "/here")
		if err == nil {
			resp.Body.Close()
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("to %s: %v, want %q", target, err, want)
		}
	}
}
