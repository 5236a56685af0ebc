package gate

import (
	"context"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/leapcell/leapcell"
)

// tryTimeout bounds one question: a worker that accepted it may have died since. It is long,
// because servers that fork first accept and then need seconds until they answer, and
// asking them again and again would fill their backlog.
const tryTimeout = 2 * time.Second

// probe asks the app until it answers, and decides the start. [LC3-LC5]
func (g *Gate) probe(ctx context.Context, b Backend) {
	port := strconv.Itoa(g.cfg.Port)
	addresses := []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded {
				g.Fail(leapcell.CodePortNotListening, leapcell.PortNotListeningText(g.cfg.Port))
			}
			return
		case <-pause.C:
		}
		for _, address := range addresses {
			if answers(ctx, b, address) {
				g.becomeReady(address)
				return
			}
		}
		pause.Reset(interval(time.Since(g.launched)))
	}
}

// interval is the pause between probes: from 1 ms to 10 ms in the first second, then
// 50 ms. [LC4] It grows with the age of the process, so that it adds at most a tenth to a
// start of any length.
func interval(age time.Duration) time.Duration {
	if age >= time.Second {
		return 50 * time.Millisecond
	}
	return min(max(age/10, time.Millisecond), 10*time.Millisecond)
}

// answers reports whether an HTTP server listens at address: any status will do.
func answers(ctx context.Context, b Backend, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	conn, err := b.Dial(ctx, address)
	if err != nil {
		return false
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = io.WriteString(conn, "GET "+leapcell.ProbePath+" HTTP/1.1\r\nHost: "+address+
		"\r\nUser-Agent: leapcell-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n")
	if err != nil {
		return false
	}
	var head [5]byte
	_, err = io.ReadFull(conn, head[:])
	return err == nil && string(head[:]) == "HTTP/"
}
