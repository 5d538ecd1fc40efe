"""A plain gRPC server: it knows nothing of etcd, Kubernetes or the operator.

What matters for calls that never fail is what any server on Kubernetes should do: say by the health service when it is
ready, and on SIGTERM finish the calls that run before it ends.
"""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import greeter_pb2
import greeter_pb2_grpc
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

GRACE_SECONDS = 10


class Greeter(greeter_pb2_grpc.GreeterServicer):
    def __init__(self, name: str) -> None:
        self._name = name

    def SayHello(  # noqa: N802  (protoc makes the name)
        self,
        request: greeter_pb2.HelloRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> greeter_pb2.HelloReply:
        return greeter_pb2.HelloReply(message=f"Hello {request.name}, this is {self._name}")


def main() -> None:
    address = os.environ.get("LISTEN", "0.0.0.0:50051")
    server = grpc.server(ThreadPoolExecutor(16))
    greeter_pb2_grpc.add_GreeterServicer_to_server(Greeter(os.environ.get("HOSTNAME", address)), server)
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.wait(1):  # without an end, a signal that comes just before it would wake nobody
        pass
    server.stop(GRACE_SECONDS).wait()


if __name__ == "__main__":
    main()
