"""The program of a server on grpcio, for a process of its own."""

SERVER = """
import threading
from concurrent.futures import ThreadPoolExecutor
import grpc

def unary(request, context):
    context.send_initial_metadata((("x-first", "1"),))
    user = dict(context.invocation_metadata())["x-user"]
    context.set_trailing_metadata((("x-last-bin", b"\\xff\\x00"), ("x-user", user)))
    return request[::-1]

def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n

def client_stream(requests, context):
    return b"+".join(requests)

def bidi(requests, context):
    for request in requests:
        yield request

def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet: \\u00e4")

def sleep(request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    context.send_initial_metadata(())
    ended.wait()
    print("ended", flush=True)
    return b""

kinds = grpc.method_handlers_generic_handler("a.B", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
})
server = grpc.server(ThreadPoolExecutor(8), compression=grpc.Compression.Gzip)
server.add_generic_rpc_handlers((kinds,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on 127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""
