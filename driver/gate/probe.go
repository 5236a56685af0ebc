package gate

import (
	"bytes"
	"context"
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
			if app, ok := answers(ctx, b, address); ok {
				g.becomeReady(app)
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

// answers reports whether an HTTP server listens at address: any status will do. Who hangs
// up on HTTP/1.1, or says what HTTP/2 begins with, is asked in HTTP/2 at once.
func answers(ctx context.Context, b Backend, address string) (target, bool) {
	said, err := ask(ctx, b, address, "GET "+leapcell.ProbePath+" HTTP/1.1\r\nHost: "+address+
		"\r\nUser-Agent: leapcell-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n")
	switch {
	case err != nil:
		return target{}, false
	case bytes.HasPrefix(said, []byte("HTTP/")):
		return target{address: address}, true
	case len(said) > 0 && !isSettings(said):
		return target{}, false
	}
	said, err = ask(ctx, b, address, http2Question)
	return target{address, true}, err == nil && isSettings(said)
}
