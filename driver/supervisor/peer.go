package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell"
)

// handoverVersion is that of the messages below. A supervisor that speaks another one is not
// asked to hand over: it is replaced when nothing runs.
const handoverVersion = 1

// kind says what a [message] is about. O is the supervisor that gives its tasks away, N the
// one that gets them.
type kind string

const (
	kindTake    kind = "take"    // N→O: give me your tasks; with the version
	kindRefused kind = "refused" // O→N: not now; with the reason
	kindTask    kind = "task"    // O→N: a task's gate; with its socket
	kindEvent   kind = "event"   // O→N: one that the plugin may not have read
	kindLock    kind = "lock"    // O→N: that was all; with the state folder's lock
	kindReady   kind = "ready"   // N→O: I can
	kindBusy    kind = "busy"    // O→N: keep this task's instance awake from the beginning
	kindCommit  kind = "commit"  // O→N: they are yours

	kindStay    kind = "stay"    // O→N, on a new connection: I still serve requests of your tasks; with the version
	kindHold    kind = "hold"    // O→N: wake this task's instance, and keep it awake
	kindHeld    kind = "held"    // N→O: done, or not: with the reason
	kindRelease kind = "release" // O→N
	kindExit    kind = "exit"    // O→N: a process that was O's child has ended
)

// message is one packet between two supervisors of a node.
type message struct {
	Kind    kind       `json:"kind"`
	Version int        `json:"version,omitempty"`
	ID      string     `json:"id,omitempty"` // of the task
	Text    string     `json:"text,omitempty"`
	Event   *Event     `json:"event,omitempty"`
	Exit    *cell.Exit `json:"exit,omitempty"`
}

// messageLimit bounds a packet; the longest are events.
const messageLimit = 64 << 10

// peer is a connection to another supervisor. Sending is safe from any goroutine, receiving
// from one at a time.
type peer struct {
	conn *net.UnixConn
	mu   sync.Mutex // keeps packets of different goroutines in order with what they say
	in   []byte
}

func newPeer(conn *net.UnixConn) *peer { return &peer{conn: conn} }

// dialPeer connects to the supervisor whose handover socket has that name.
func dialPeer(socket string) (*peer, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return newPeer(conn), nil
}

// send writes one packet; file may be nil and stays the caller's.
func (p *peer) send(m message, file syscall.RawConn) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > messageLimit {
		return fmt.Errorf("handover: a message of %d bytes", len(b))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.conn.SetWriteDeadline(time.Now().Add(handoverLimit))
	if file == nil {
		_, err = p.conn.Write(b)
		return err
	}
	// Within Control, because the descriptor must stay what it is until it was sent.
	failed := file.Control(func(fd uintptr) {
		_, _, err = p.conn.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(failed, err)
}

// receive reads one packet, with the file that came along or nil. The zero deadline is none.
func (p *peer) receive(deadline time.Time) (message, *os.File, error) {
	_ = p.conn.SetReadDeadline(deadline)
	if p.in == nil {
		p.in = make([]byte, messageLimit)
	}
	var m message
	control := make([]byte, unix.CmsgSpace(4))
	n, c, _, _, err := p.conn.ReadMsgUnix(p.in, control)
	if err != nil {
		return m, nil, err
	}
	if n == 0 && c == 0 {
		return m, nil, errGone
	}
	file, err := passedFile(control[:c])
	if err == nil {
		err = json.Unmarshal(p.in[:n], &m)
	}
	if err != nil && file != nil {
		_ = file.Close()
		file = nil
	}
	return m, file, err
}

var errGone = errors.New("the other supervisor is gone")

// passedFile takes the one descriptor out of a packet's control data.
func passedFile(control []byte) (*os.File, error) {
	if len(control) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			return os.NewFile(uintptr(fd), "passed"), nil // there is room for one only
		}
	}
	return nil, nil
}

func (p *peer) close() { _ = p.conn.Close() }

// listenPeers listens at socket in place of whoever did before.
func listenPeers(socket string) (*net.UnixListener, error) {
	_ = os.Remove(socket + ".new") // of one that died between here and the renaming
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket + ".new", Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be another's by then
	if err := errors.Join(os.Chmod(socket+".new", 0o600), os.Rename(socket+".new", socket)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
