module interop/peers/grpc_go

go 1.24.0

// Not the newest, on purpose: before 1.84 the server waits for ever for the end of a request stream that came with its
// HEADERS, which no gRPC client sends. A proxy that makes such HEADERS shows in empty_stream.
require google.golang.org/grpc v1.79.3

require (
	cloud.google.com/go/compute/metadata v0.9.0 // indirect
	github.com/cncf/xds/go v0.0.0-20251210132809-ee656c7534f5 // indirect
	github.com/envoyproxy/protoc-gen-validate v1.3.0 // indirect
	golang.org/x/net v0.48.0 // indirect
	golang.org/x/oauth2 v0.34.0 // indirect
	golang.org/x/sys v0.39.0 // indirect
	golang.org/x/text v0.32.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20251202230838-ff82c1b0f217 // indirect
	google.golang.org/protobuf v1.36.10 // indirect
)
