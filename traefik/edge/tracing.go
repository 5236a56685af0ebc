package edge

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/traefik/traefik/v3/pkg/observability/tracing"
	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

const (
	tracerName = "github.com/leapcell/leapcell/traefik/edge"
	// flushTimeout is for the last spans when the edge stops.
	flushTimeout = 5 * time.Second
	// traceErrors is the least time between two lines that say that spans are lost.
	traceErrors = time.Minute
)

// traces makes one span for each request. Traefik begins and ends it, with the attributes
// that the conventions for HTTP want; what is ours is added at the end. The exporter, its
// address and headers, and the sampler are those of OpenTelemetry's environment variables.
type traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// newTraces sets tracing up for the whole process. The protocol is "grpc" or "http/protobuf".
func newTraces(ctx context.Context, protocol, edge string, log *slog.Logger) (*traces, error) {
	var client otlptrace.Client
	switch protocol {
	case "grpc":
		client = otlptracegrpc.NewClient()
	case "http/protobuf":
		client = otlptracehttp.NewClient()
	default:
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "OTEL_EXPORTER_OTLP_PROTOCOL is %q: it must be grpc or http/protobuf", protocol)
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "leapcell-edge"), attribute.String("service.instance.id", edge)),
		resource.WithFromEnv()) // the environment has the last word
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	var said atomic.Int64
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		if now := time.Now().UnixNano(); now-said.Load() > int64(traceErrors) {
			said.Store(now)
			log.Warn("spans are lost", "error", err)
		}
	}))
	otel.SetTextMapPropagator(autoprop.NewTextMapPropagator()) // Traefik uses the global one
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return &traces{provider: provider, tracer: provider.Tracer(tracerName)}, nil
}

// Close sends the last spans.
func (t *traces) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// traefiks is the tracer as Traefik wants it. No header and no part of the query becomes an
// attribute.
func (t *traces) traefiks() *tracing.Tracer { return tracing.NewTracer(t.tracer, nil, nil, nil) }

// passOn makes the edge's span the parent of what the app does.
func (t *traces) passOn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tracing.InjectContextIntoCarrier(r)
		next.ServeHTTP(w, r)
	})
}

// Woke is said by the spans of the requests that waited.
func (t *traces) Woke(*leapcell.Route) {}

// Visited adds to the request's span what became of it, and a span for each phase of a start
// that it waited for.
func (t *traces) Visited(v *wake.Visit) {
	ctx := v.Request.Context()
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	about := []attribute.KeyValue{attribute.Bool("leapcell.cold", v.Cold), attribute.Int("leapcell.retries", v.Retries)}
	text := func(name, value string) {
		if value != "" {
			about = append(about, attribute.String(name, value))
		}
	}
	if v.Route != nil {
		text("leapcell.service", v.Route.ServiceID)
		text("leapcell.deployment", v.Route.Deployment)
	}
	text("leapcell.instance", v.Instance)
	text("leapcell.refused", v.Refused)
	span.SetAttributes(about...)
	if v.Broken || v.Aborted {
		span.SetStatus(codes.Error, "the answer was not passed on whole")
	}
	if !v.Timed {
		return
	}
	at := v.Arrived
	for i, d := range phaseTimes(v.Phases) {
		if d <= 0 {
			continue
		}
		_, phase := t.tracer.Start(ctx, "cold start: "+phaseNames[i], trace.WithTimestamp(at))
		at = at.Add(d)
		phase.End(trace.WithTimestamp(at))
	}
}
