package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// uplink is a way to a server that lets only so many bytes through until it is opened.
type uplink struct {
	address string // to connect to
	to      string
	most    int64
	open    func()

	opened chan struct{}
	mu     sync.Mutex
	sent   int64
	full   chan struct{} // closed when no more get through
}

func newUplink(t *testing.T, to string, most int64) *uplink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	u := &uplink{address: l.Addr().String(), to: to, most: most, opened: make(chan struct{}), full: make(chan struct{})}
	u.open = sync.OnceFunc(func() { close(u.opened) })
	t.Cleanup(func() { l.Close(); u.open() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go u.pass(client)
		}
	}()
	return u
}

// pass connects a client with the server until one of them goes.
func (u *uplink) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", u.to)
	if err != nil {
		return
	}
	defer server.Close()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(client, server) // ends when one of them goes
		client.Close()
	}()
	buffer := make([]byte, 16<<10)
	for u.wait(gone) {
		n, err := client.Read(buffer)
		if n > 0 {
			u.count(n)
			_, _ = server.Write(buffer[:n]) // the next one fails as well
		}
		if err != nil {
			break
		}
	}
	server.Close()
	<-gone
}

// wait reports false when the server went before there was more room.
func (u *uplink) wait(gone chan struct{}) bool {
	select {
	case <-u.full:
	default:
		return true
	}
	select {
	case <-u.opened:
		return true
	case <-gone:
		return false
	}
}

func (u *uplink) count(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.sent
	if u.sent += int64(n); u.sent >= u.most && before < u.most {
		close(u.full)
	}
}

// total is how many bytes came from clients.
func (u *uplink) total() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent
}

// The upload of a folder goes on where it was when the control plane is killed in its middle: the command
// waits for that, sends the rest, and ends with the URL.
func TestUploadGoesOnAfterAKill(t *testing.T) {
	p := harness.Get(t)
	const size, most = 24 << 20, 12 << 20 // up to the middle of the second piece
	blob := make([]byte, size)
	_, _ = rand.Read(blob)
	s := p.Create(t, harness.Spec{
		Settings: leapcell.Settings{BuildCommand: "sha256sum -c sums && chmod 755 probe"},
		Extra:    map[string]string{"blob": string(blob), "sums": fmt.Sprintf("%x  blob\n", sha256.Sum256(blob))},
	})
	dir := t.TempDir()
	for name, text := range s.Source() {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	link := newUplink(t, strings.TrimPrefix(p.Config.APIAddress(), "http://"), most)
	cli := make(chan harness.Result, 1)
	go func() { cli <- p.CLI(t, "deploy", dir, "--name", s.Name, "--api", "http://"+link.address) }()
	select {
	case <-link.full:
	case r := <-cli:
		t.Fatalf("the command ended before %d bytes were sent: %d\n%s", most, r.Code, r.Output)
	case <-time.After(5 * time.Minute):
		t.Fatalf("only %d bytes were sent", link.total())
	}
	kill(t, "leapcelld", "")
	link.open()
	p.Up(t)
	r := <-cli
	if last := lastLine(r.Stdout); r.Code != 0 || !strings.Contains(last, s.URL) || !strings.Contains(r.Output, "the upload was interrupted at ") {
		t.Errorf("exit code %d, and %q as the last line of:\n%s", r.Code, last, r.Output)
	}
	visit(t, s)
	// What was on its way is sent again, and no piece that had come.
	packed := int64(len(blob) + len(s.Source()["probe"]))
	if sent := link.total(); sent > packed+most-(8<<20)+1<<20 {
		t.Errorf("%d bytes were sent of at most %d: it did not go on where it was", sent, packed)
	} else {
		t.Logf("%d bytes were sent of at most %d", sent, packed)
	}
}
