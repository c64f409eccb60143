// The client and the server of grpc-go's own interop suite, told what to do as the other peers are told; and those of
// load.go, for the soak, and of caller.go, for the laboratory.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // requests may come compressed
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/interop/grpc_testing"
)

const (
	messageLimit = 80 << 20
	caseTime     = 60 * time.Second // a case that takes longer than this hangs
)

// What the server of the suite cannot do, as the runner wants to be told.
var serverCannot = map[string]string{
	"records":                     "the interop server of grpc-go keeps no records of its calls",
	"server_compressed_unary":     "the interop server of grpc-go does not compress",
	"server_compressed_streaming": "the interop server of grpc-go does not compress",
	"headers_without_message":     "the interop server of grpc-go echoes no metadata in StreamingOutputCall",
}

type testCase func(context.Context, *grpc.ClientConn)

// A case of the suite that takes a stub of the test service.
func onTestService(do func(context.Context, grpc_testing.TestServiceClient, ...grpc.CallOption)) testCase {
	return func(ctx context.Context, conn *grpc.ClientConn) {
		do(ctx, grpc_testing.NewTestServiceClient(conn))
	}
}

var clientCases = map[string]testCase{
	"empty_unary":                 onTestService(interop.DoEmptyUnaryCall),
	"large_unary":                 onTestService(interop.DoLargeUnaryCall),
	"client_streaming":            onTestService(interop.DoClientStreaming),
	"server_streaming":            onTestService(interop.DoServerStreaming),
	"ping_pong":                   onTestService(interop.DoPingPong),
	"empty_stream":                onTestService(interop.DoEmptyStream),
	"custom_metadata":             onTestService(interop.DoCustomMetadata),
	"status_code_and_message":     onTestService(interop.DoStatusCodeAndMessage),
	"special_status_message":      onTestService(interop.DoSpecialStatusMessage),
	"unimplemented_method":        interop.DoUnimplementedMethod,
	"cancel_after_begin":          onTestService(interop.DoCancelAfterBegin),
	"cancel_after_first_response": onTestService(interop.DoCancelAfterFirstResponse),
	"timeout_on_sleeping_server":  onTestService(interop.DoTimeoutOnSleepingServer),
	"unimplemented_service": func(ctx context.Context, conn *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, grpc_testing.NewUnimplementedServiceClient(conn))
	},
}

// One line for the runner.
func report(name string, start time.Time, key string, value any) {
	line, err := json.Marshal(map[string]any{"case": name, "seconds": time.Since(start).Seconds(), key: value})
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

// The suite reports a failed case as a fatal message of the log, and the process ends with it. The runner starts
// another one for the cases that are left.
type failures struct {
	grpclog.LoggerV2
	report func(text string)
}

var address = regexp.MustCompile(`0x[0-9a-f]+`)

func (f *failures) fail(text string) {
	f.report(address.ReplaceAllString(strings.TrimSpace(text), "0x…"))
	os.Exit(1)
}

func (f *failures) Fatal(args ...any)                 { f.fail(fmt.Sprint(args...)) }
func (f *failures) Fatalln(args ...any)               { f.fail(fmt.Sprintln(args...)) }
func (f *failures) Fatalf(format string, args ...any) { f.fail(fmt.Sprintf(format, args...)) }

func client(target string, cases []string) {
	log := &failures{LoggerV2: grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)}
	grpclog.SetLoggerV2(log)
	for _, name := range cases {
		start := time.Now()
		play, known := clientCases[name]
		if !known {
			report(name, start, "cannot", "the interop client of grpc-go does not have it")
			continue
		}
		log.report = func(text string) { report(name, start, "failure", text) }
		hangs := time.AfterFunc(caseTime, func() { log.fail("hangs") })
		conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			log.fail(err.Error())
		}
		play(context.Background(), conn)
		hangs.Stop()
		conn.Close()
		report(name, start, "passed", true)
	}
}

func stopOnSignal(server *grpc.Server, graceful bool) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		if graceful {
			server.GracefulStop()
			return
		}
		server.Stop()
	}()
}

func serve() error {
	server := grpc.NewServer(grpc.MaxRecvMsgSize(messageLimit))
	grpc_testing.RegisterTestServiceServer(server, interop.NewTestServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	stopOnSignal(server, false)
	for name, reason := range serverCannot {
		fmt.Printf("cannot %s: %s\n", name, reason)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	return server.Serve(listener)
}

func main() {
	flags := flag.NewFlagSet("grpc_go client|server|caller|load|bytes_server", flag.ExitOnError)
	target := flags.String("target", "", "HOST:PORT")
	cases := flags.String("cases", "", "of client: comma-separated")
	flags.String("run-id", "", "of client; of no use here: the server keeps no records")
	plan := flags.String("plan", "", "of caller: what to do, as JSON")
	deadline := flags.Float64("deadline", 5, "of caller: of each call, in seconds")
	services := flags.String("services", "interop.Bytes", "of load: comma-separated; called on the channels in turn")
	seconds := flags.Float64("seconds", 1, "of load")
	channels := flags.Int("channels", 2, "of load")
	atATime := flags.Int("at-a-time", 24, "of load: calls on each channel")
	port := flags.Int("port", 0, "of bytes_server: a port of the loopback interface; 0: a free one")
	graceful := flags.Bool("graceful", false, "of bytes_server: let calls finish on SIGTERM")
	if len(os.Args) < 2 {
		flags.Usage()
		os.Exit(2)
	}
	flags.Parse(os.Args[2:])
	var err error
	switch os.Args[1] {
	case "client":
		client(*target, strings.Split(*cases, ","))
	case "server":
		err = serve()
	case "caller":
		err = caller(*target, *plan, *deadline)
	case "load":
		err = load(*target, strings.Split(*services, ","), *seconds, *channels, *atATime)
	case "bytes_server":
		err = serveBytes(*port, *graceful)
	default:
		flags.Usage()
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
