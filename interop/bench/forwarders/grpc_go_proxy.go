// A forwarder as a user of grpc-go would write it: grpc_go_proxy LISTEN_PORT UPSTREAM_PORT.
//
// The handler for unknown services takes every method, and two goroutines pass the messages on, one each way, which
// covers the four shapes of a call; a codec passes messages as the bytes they are; all calls share one connection.
// This is the shape of the transparent proxies that are packages for Go.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// frame is a message nobody looks into.
type frame struct{ payload []byte }

// rawCodec lets frames pass.
type rawCodec struct{}

func (rawCodec) Marshal(message interface{}) ([]byte, error) { return message.(*frame).payload, nil }

func (rawCodec) Unmarshal(data []byte, message interface{}) error {
	message.(*frame).payload = data
	return nil
}

func (rawCodec) Name() string   { return "proto" }
func (rawCodec) String() string { return "proto" }

var everyShape = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// forwarder answers a call with what the upstream answers.
func forwarder(upstream *grpc.ClientConn) grpc.StreamHandler {
	return func(_ interface{}, downstream grpc.ServerStream) error {
		method, ok := grpc.MethodFromServerStream(downstream)
		if !ok {
			return status.Error(codes.Internal, "the call has no method")
		}
		ctx, cancel := context.WithCancel(downstream.Context())
		defer cancel()
		if received, ok := metadata.FromIncomingContext(ctx); ok {
			ctx = metadata.NewOutgoingContext(ctx, received.Copy())
		}
		call, err := upstream.NewStream(ctx, everyShape, method)
		if err != nil {
			return err
		}
		requests := make(chan error, 1)
		go func() { requests <- passRequests(downstream, call) }()
		responses := make(chan error, 1)
		go func() { responses <- passResponses(call, downstream) }()
		for {
			select {
			case err := <-requests:
				if err != nil {
					return err
				}
				requests = nil
			case err := <-responses:
				downstream.SetTrailer(call.Trailer())
				if err == io.EOF {
					return nil
				}
				return err
			}
		}
	}
}

func passRequests(downstream grpc.ServerStream, call grpc.ClientStream) error {
	for {
		message := &frame{}
		if err := downstream.RecvMsg(message); err == io.EOF {
			return call.CloseSend()
		} else if err != nil {
			return err
		}
		if err := call.SendMsg(message); err == io.EOF {
			return nil // the upstream has ended the call, and its status comes the other way
		} else if err != nil {
			return err
		}
	}
}

func passResponses(call grpc.ClientStream, downstream grpc.ServerStream) error {
	header, err := call.Header()
	if err != nil {
		return err
	}
	if err := downstream.SendHeader(header); err != nil {
		return err
	}
	for {
		message := &frame{}
		if err := call.RecvMsg(message); err != nil {
			return err // io.EOF: it has ended well
		}
		if err := downstream.SendMsg(message); err != nil {
			return err
		}
	}
}

func run(listenPort, upstreamPort string) error {
	upstream, err := grpc.Dial(
		"127.0.0.1:"+upstreamPort, grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
	)
	if err != nil {
		return err
	}
	defer upstream.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:"+listenPort)
	if err != nil {
		return err
	}
	return grpc.NewServer(grpc.CustomCodec(rawCodec{}), grpc.UnknownServiceHandler(forwarder(upstream))).Serve(listener)
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println(grpc.Version)
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: grpc_go_proxy LISTEN_PORT UPSTREAM_PORT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
