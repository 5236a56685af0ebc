package ports

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

func TestFreeGivesNoPortTwice(t *testing.T) {
	seen := map[int]bool{}
	for range 20 {
		from, err := Free(3, ForPrograms)
		if err != nil {
			t.Fatal(err)
		}
		for port := from; port < from+3; port++ {
			if seen[port] {
				t.Fatalf("port %d was given twice", port)
			}
			seen[port] = true
		}
	}
}

func TestFreeLeavesOutWhatIsTaken(t *testing.T) {
	from, err := Free(1, ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", from))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got, err := Free(1, []Range{{from, from}}); err == nil || !strings.Contains(err.Error(), "are free") {
		t.Errorf("it gives %d, %v although %d is listened on", got, err, from)
	}
	_ = l.Close()
	if got, err := Free(1, []Range{{from, from}}); err != nil || got != from {
		t.Errorf("it gives %d, %v, want %d", got, err, from)
	}
}

func TestRangesAreNotTheKernels(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Skip(err)
	}
	var from, to int
	if _, err := fmt.Sscan(string(text), &from, &to); err != nil {
		t.Fatal(err)
	}
	if from != 32768 {
		t.Skipf("this machine gives out ports from %d on", from)
	}
	for _, r := range append(ForPrograms, ForPlatforms...) {
		if r.to >= from {
			t.Errorf("%v reaches into the ports of outgoing connections, from %d on", r, from)
		}
	}
}
