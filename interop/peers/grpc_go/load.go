// A client that calls as fast as it is answered, of whose calls one in five is cancelled and one in five expires, and the
// server that is called: what ../grpcio/aio_load.py and promises/bytes_server.py are in Python.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const slowTime = 60 * time.Second

var (
	small = make([]byte, 100)
	large = make([]byte, 16*1024)
	// How long a call is let alone before it is cancelled: around the time that an answer takes, and up to many times that.
	cancelTimes = []time.Duration{0, 1 * time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
	deadlines   = []time.Duration{2 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
)

// Messages are bytes, and nothing is looked at.
type bytesCodec struct{}

func (bytesCodec) Name() string                        { return "proto" } // of which every server knows the content-type
func (bytesCodec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = bytes.Clone(data)
	return nil
}

// One of the kinds of calls, and how often it is chosen of those of its group.
type kind struct {
	name   string
	weight int
	call   func(*loadClient) (string, error)
}

var kinds = map[string][]kind{
	"good":      {{"unary", 16, unary(small)}, {"large", 1, unary(large)}, {"streaming", 1, streaming}, {"chat", 1, chat}},
	"cancelled": {{"unary", 1, cancelledUnary}, {"about when answered", 1, cancelledAboutWhenAnswered}, {"before the answer", 1, cancelledBeforeTheAnswer}, {"after the answer began", 1, cancelledAfterTheAnswerBegan}},
	"expired":   {{"unary", 1, expiredUnary}, {"streaming", 1, expiredStream}},
}

// What a call of each group should end with.
var wanted = map[string]codes.Code{"good": codes.OK, "cancelled": codes.Canceled, "expired": codes.DeadlineExceeded}

// One connection, with what a call needs to be made on it.
type loadClient struct {
	conn    *grpc.ClientConn
	service string // as a path, up to the method
}

func (c *loadClient) invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	var answer []byte
	err := c.conn.Invoke(ctx, c.service+method, &request, &answer)
	return answer, err
}

// A stream on which one request has been sent, which is the last one unless more may follow.
func (c *loadClient) stream(ctx context.Context, method string, request []byte, more bool) (grpc.ClientStream, error) {
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: more}, c.service+method)
	if err != nil {
		return nil, err
	}
	// A stream that is over by then says io.EOF here, and why when it is read.
	if err := stream.SendMsg(&request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !more {
		return stream, stream.CloseSend()
	}
	return stream, nil
}

func one[T any](of []T) T { return of[rand.IntN(len(of))] }

func unary(message []byte) func(*loadClient) (string, error) {
	return func(c *loadClient) (string, error) {
		answer, err := c.invoke(context.Background(), "Echo", message)
		if err == nil && !bytes.Equal(answer, message) {
			return "another answer", nil
		}
		return "", err
	}
}

func streaming(c *loadClient) (string, error) {
	stream, err := c.stream(context.Background(), "Stream", []byte("5"), false)
	if err != nil {
		return "", err
	}
	count, err := readToEnd(stream)
	if err == nil && count != 5 {
		return fmt.Sprintf("%d messages of 5", count), nil
	}
	return "", err
}

func chat(c *loadClient) (string, error) {
	stream, err := c.stream(context.Background(), "Chat", small, true)
	if err != nil {
		return "", err
	}
	for turn := range 3 {
		var answer []byte
		if err := stream.RecvMsg(&answer); errors.Is(err, io.EOF) {
			return "OK without the message", nil
		} else if err != nil {
			return "", err
		}
		if turn < 2 {
			if err := stream.SendMsg(&small); err != nil && !errors.Is(err, io.EOF) {
				return "", err
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	_, err = readToEnd(stream)
	return "", err
}

func cancelledUnary(c *loadClient) (string, error) {
	ctx, cancel := cancelledSoon()
	defer cancel()
	_, err := c.invoke(ctx, "Slow", small)
	return "", err
}

func cancelledAboutWhenAnswered(c *loadClient) (string, error) {
	ctx, cancel := cancelledSoon()
	defer cancel()
	if _, err := c.invoke(ctx, "Echo", small); err != nil {
		return "", err
	}
	return answered, nil
}

func cancelledBeforeTheAnswer(c *loadClient) (string, error) {
	ctx, cancel := cancelledSoon()
	defer cancel()
	// With the one message unsent, the server has nothing to answer.
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.service+"Chat")
	if err != nil {
		return "", err
	}
	_, err = readToEnd(stream)
	return "", err
}

func cancelledAfterTheAnswerBegan(c *loadClient) (string, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.stream(ctx, "Watch", small, false)
	if err != nil {
		return "", err
	}
	var first []byte
	if err := stream.RecvMsg(&first); err != nil {
		return "", err
	}
	time.AfterFunc(one(cancelTimes), cancel)
	_, err = readToEnd(stream)
	return "", err
}

func expiredUnary(c *loadClient) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), one(deadlines))
	defer cancel()
	_, err := c.invoke(ctx, "Slow", small)
	return "", err
}

func expiredStream(c *loadClient) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), one(deadlines))
	defer cancel()
	stream, err := c.stream(ctx, "Watch", small, false)
	if err != nil {
		return "", err
	}
	_, err = readToEnd(stream)
	return "", err
}

func cancelledSoon() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(one(cancelTimes), cancel)
	return ctx, cancel
}

func readToEnd(stream grpc.ClientStream) (count int, err error) {
	for {
		var message []byte
		if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
			return count, nil
		} else if err != nil {
			return count, err
		}
		count++
	}
}

// What a call says whose answer came before the cancel: it is a good one.
const answered = "answered"

// What has come of all calls.
type tally struct {
	sync.Mutex
	Calls       map[string]int `json:"calls"` // begun, by group
	Unexpected  map[string]int `json:"unexpected"`
	Disconnects int            `json:"disconnects"`
}

// The group of the next call: the one that is short of its fifth of all calls, or else good.
func (t *tally) next() string {
	t.Lock()
	defer t.Unlock()
	total := t.Calls["good"] + t.Calls["cancelled"] + t.Calls["expired"]
	group := "good"
	for _, name := range []string{"cancelled", "expired"} {
		if 5*t.Calls[name] <= total {
			group = name
			break
		}
	}
	t.Calls[group]++
	return group
}

func (t *tally) ended(group string, kind string, outcome string, err error) {
	t.Lock()
	defer t.Unlock()
	if outcome == answered {
		t.Calls[group]--
		t.Calls["good"]++
		return
	}
	if outcome == "" {
		end := status.Convert(err)
		if end.Code() == wanted[group] {
			return
		}
		outcome = fmt.Sprintf("%v: %s", end.Code(), end.Message())
	}
	t.Unexpected[fmt.Sprintf("%s, %s: %s", group, kind, outcome)]++
}

func (t *tally) report() {
	t.Lock()
	defer t.Unlock()
	line, err := json.Marshal(t)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

// Counts how often the channel, once connected, loses its connection.
func (t *tally) watch(conn *grpc.ClientConn) {
	for {
		state := conn.GetState()
		if !conn.WaitForStateChange(context.Background(), state) || conn.GetState() == connectivity.Shutdown {
			return
		}
		if state == connectivity.Ready {
			t.Lock()
			t.Disconnects++
			t.Unlock()
		}
	}
}

func choose(group string) kind {
	sum := 0
	for _, kind := range kinds[group] {
		sum += kind.weight
	}
	at := rand.IntN(sum)
	for _, kind := range kinds[group] {
		if at -= kind.weight; at < 0 {
			return kind
		}
	}
	panic("there is always one")
}

// Calls until the time is over. Once a second, and at the end, a line of JSON tells what has come of all calls so far.
func load(target string, services []string, seconds float64, channels, atATime int) error {
	told := &tally{Calls: map[string]int{}, Unexpected: map[string]int{}}
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	var working sync.WaitGroup
	for number := range channels {
		conn, err := grpc.NewClient(
			target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})),
		)
		if err != nil {
			return err
		}
		go told.watch(conn)
		client := &loadClient{conn, "/" + services[number%len(services)] + "/"}
		for range atATime {
			working.Add(1)
			go func() {
				defer working.Done()
				for time.Now().Before(end) {
					group := told.next()
					kind := choose(group)
					outcome, err := kind.call(client)
					told.ended(group, kind.name, outcome, err)
				}
			}()
		}
	}
	go func() {
		for range time.Tick(time.Second) {
			told.report()
		}
	}()
	working.Wait()
	told.report()
	return nil
}

// Serves the methods of promises/bytes_server.py, under any service's name.
func serveBytes(port int, graceful bool) error {
	handler := func(_ any, stream grpc.ServerStream) error {
		path, _ := grpc.MethodFromServerStream(stream)
		var request []byte
		if err := stream.RecvMsg(&request); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		switch path[strings.LastIndexByte(path, '/')+1:] {
		case "Echo", "Load":
			return stream.SendMsg(&request)
		case "Slow":
			select {
			case <-time.After(slowTime):
				return stream.SendMsg(&request)
			case <-stream.Context().Done():
				return stream.Context().Err()
			}
		case "Stream":
			count, err := strconv.Atoi(string(request))
			if err != nil {
				return status.Error(codes.InvalidArgument, err.Error())
			}
			message := make([]byte, 1024)
			for range count {
				if err := stream.SendMsg(&message); err != nil {
					return err
				}
			}
			return nil
		case "Chat":
			for {
				if err := stream.SendMsg(&request); err != nil {
					return err
				}
				if err := stream.RecvMsg(&request); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		case "Watch":
			if err := stream.SendMsg(&request); err != nil {
				return err
			}
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		return status.Error(codes.Unimplemented, path)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(handler), grpc.ForceServerCodec(bytesCodec{}))
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	stopOnSignal(server, graceful)
	fmt.Printf("listening on %s\n", listener.Addr())
	return server.Serve(listener)
}
