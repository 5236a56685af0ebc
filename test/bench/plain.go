package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/proxy/httputil"
	"github.com/traefik/traefik/v3/pkg/server/service"

	"github.com/leapcell/leapcell/test/harness"
	"github.com/leapcell/leapcell/traefik/edge"
)

// servePlain is the other end of plainTraefik; arg is LISTEN=TARGET.
func servePlain(ctx context.Context, arg string) error {
	listen, target, ok := strings.Cut(arg, "=")
	if !ok {
		return fmt.Errorf("-plain %q: it must be LISTEN=TARGET", arg)
	}
	transports := service.NewTransportManager(nil)
	transports.Update(map[string]*dynamic.ServersTransport{"default@internal": {MaxIdleConnsPerHost: 200}})
	proxy, err := httputil.NewProxyBuilder(transports, nil).Build("default@internal", &url.URL{Scheme: "http", Host: target}, true, false, 0)
	if err != nil {
		return err
	}
	return edge.Serve(ctx, edge.Config{Listen: listen, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}, proxy)
}

func freeAddress(s *session) string {
	return fmt.Sprintf("127.0.0.1:%d", harness.FreePorts(s, 1)[0])
}

// answers waits until a server at address answers anything.
func answers(s *session, address string) error {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			return resp.Body.Close()
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond) // there is no event for "listens"
	}
}
