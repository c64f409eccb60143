// Caller in grpc-go: see ../python/caller.py.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

type planStep struct {
	PauseS       float64 `json:"pause_s"`
	Calls        int     `json:"calls"`
	RequestSize  int     `json:"request_size"`
	ResponseSize int32   `json:"response_size"`
}

type callEnd struct {
	Status  string  `json:"status"`
	Message string  `json:"message"`
	Size    *int    `json:"size"`
	Seconds float64 `json:"seconds"`
}

// The names of the statuses, as all other callers write them.
var statusNames = map[codes.Code]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

func oneCall(stub grpc_testing.TestServiceClient, step planStep, deadline time.Duration) callEnd {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	response, err := stub.UnaryCall(ctx, &grpc_testing.SimpleRequest{
		ResponseSize: step.ResponseSize,
		Payload:      &grpc_testing.Payload{Body: make([]byte, step.RequestSize)},
	})
	end := callEnd{Status: statusNames[status.Code(err)], Seconds: time.Since(began).Seconds()}
	if err != nil {
		end.Message = status.Convert(err).Message()
		return end
	}
	size := len(response.GetPayload().GetBody())
	end.Size = &size
	return end
}

func caller(target, plan string, deadlineS float64) error {
	var steps []planStep
	if err := json.Unmarshal([]byte(plan), &steps); err != nil {
		return err
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stub := grpc_testing.NewTestServiceClient(conn)
	deadline := time.Duration(deadlineS * float64(time.Second))
	for _, step := range steps {
		time.Sleep(time.Duration(step.PauseS * float64(time.Second)))
		if step.Calls == 0 {
			continue
		}
		ends := make([]callEnd, step.Calls)
		var all sync.WaitGroup
		for number := range ends {
			all.Add(1)
			go func() {
				defer all.Done()
				ends[number] = oneCall(stub, step, deadline)
			}()
		}
		all.Wait()
		line, err := json.Marshal(map[string][]callEnd{"calls": ends})
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return nil
}
