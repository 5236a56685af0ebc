package main

import (
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"strings"

	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// show writes what the solver tells: each instruction when it begins or when the cache has it,
// and what it writes.
func show(w io.Writer, status chan *client.SolveStatus) {
	said := map[digest.Digest]bool{}
	for s := range status {
		for _, v := range s.Vertexes {
			if v.Started == nil || said[v.Digest] || strings.HasPrefix(v.Name, "[internal]") {
				continue
			}
			if v.Cached {
				fmt.Fprintf(w, "=> %s (cached)\n", v.Name)
			} else if v.Completed != nil || v.Error == "" {
				fmt.Fprintf(w, "=> %s\n", v.Name)
			}
			said[v.Digest] = true
		}
		for _, l := range s.Logs {
			_, _ = w.Write(l.Data)
		}
		for _, one := range s.Warnings {
			if len(one.Range) > 0 {
				fmt.Fprintf(w, "note: line %d: %s\n", one.Range[0].Start.Line, one.Short)
			}
		}
	}
}

// failure is what a deployment says of a build that failed.
type failure struct {
	Message  string `json:"message"`
	ExitCode int    `json:"exitCode"` // of the command that failed, 0 when it was none
	lines    []string
}

func (f failure) code() int {
	if f.ExitCode > 0 && f.ExitCode < 256 {
		return f.ExitCode
	}
	return 1
}

// text is the lines of the Dockerfile that the failure is about.
func (f failure) text() string {
	var b strings.Builder
	for _, line := range f.lines {
		b.WriteString(line + "\n")
	}
	return b.String()
}

func failureOf(err error, o order) failure {
	f := failure{Message: lastCause(err)}
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) && exit.ExitCode > 0 && exit.ExitCode != gatewaypb.UnknownExitStatus {
		f.ExitCode = int(exit.ExitCode)
		f.Message = fmt.Sprintf("the command exited with code %d", exit.ExitCode)
	}
	for _, s := range errdefs.Sources(err) {
		if s.Info == nil || len(s.Ranges) == 0 {
			continue
		}
		text := strings.Split(string(s.Info.Data), "\n")
		first, last := int(s.Ranges[0].Start.Line), int(s.Ranges[len(s.Ranges)-1].End.Line)
		if first < 1 || last > len(text) || last < first {
			continue
		}
		for i := first; i <= last; i++ {
			f.lines = append(f.lines, fmt.Sprintf("%4d | %s", i, text[i-1]))
		}
		f.Message = fmt.Sprintf("%s line %d: %s: %s", path.Base(o.Dockerfile), first, strings.TrimSpace(text[first-1]), f.Message)
		break
	}
	return f
}

// lastCause is an error without what the layers between say about themselves.
func lastCause(err error) string {
	text := err.Error()
	for _, prefix := range []string{"failed to solve: ", "failed to load cache key: ", "rpc error: code = Unknown desc = "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return text
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "v0.0.0"
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/moby/buildkit" {
			return "with BuildKit " + m.Version
		}
	}
	return "v0.0.0"
}
