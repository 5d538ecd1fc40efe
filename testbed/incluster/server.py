"""A gRPC server for `make test-cluster`: answers with its Pod's name, and with SERVING to the kubelet's gRPC probe.

It runs from a ConfigMap in the operator's image, so it stands alone. SIGTERM lets running calls end; SIGUSR1 is a
crash.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc

POD = os.environ["HOSTNAME"].encode()
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}


def handlers(service: str, method: str, reply: bytes) -> grpc.GenericRpcHandler:
    """Serve one method whose answer is always the same."""
    answer: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda _request, _context: reply)
    return grpc.method_handlers_generic_handler(service, {method: answer})


def main() -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = grpc.server(ThreadPoolExecutor(16))
    hello = b"\x0a" + bytes([len(POD)]) + POD  # helloworld.HelloReply{message: POD}
    server.add_generic_rpc_handlers(
        (
            handlers("helloworld.Greeter", "SayHello", hello),
            handlers("grpc.health.v1.Health", "Check", SERVING),
        )
    )
    server.add_insecure_port("[::]:50051")
    server.start()
    print("serving", flush=True)
    while signal.sigtimedwait({signal.SIGTERM}, 0.1) is None:
        pass  # so that Python gets to run the handler of SIGUSR1
    server.stop(10).wait()


if __name__ == "__main__":
    main()
