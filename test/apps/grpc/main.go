// Grpc is an app that speaks gRPC and nothing else: one call and one stream, both of which
// send back what they are sent.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// service is written down as gRPC's compiler would do it.
var service = grpc.ServiceDesc{
	ServiceName: "test.Echo",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: say}},
	Streams:     []grpc.StreamDesc{{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: chat}},
}

func say(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	in := new(wrapperspb.StringValue)
	if err := decode(in); err != nil {
		return nil, err
	}
	if in.Value == "fail" {
		return nil, status.Error(codes.NotFound, "no such thing")
	}
	return wrapperspb.String("re: " + in.Value), nil
}

func chat(_ any, s grpc.ServerStream) error {
	for {
		in := new(wrapperspb.StringValue)
		err := s.RecvMsg(in)
		if errors.Is(err, io.EOF) {
			s.SetTrailer(metadata.Pairs("x-sum", "42"))
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.SendMsg(wrapperspb.String("re: " + in.Value)); err != nil {
			return err
		}
	}
}

func main() {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", os.Getenv("PORT")))
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc:", err)
		os.Exit(1)
	}
	server := grpc.NewServer()
	server.RegisterService(&service, nil)
	fmt.Fprintln(os.Stderr, "grpc:", server.Serve(l))
	os.Exit(1)
}
