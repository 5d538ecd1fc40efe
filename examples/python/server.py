"""A server outside Kubernetes that registers itself while it serves: `python server.py [ADDRESS [GROUP]]`.

It is registered from its start, under a lease that is renewed by a thread of its own, and put back whenever the lease
or the key is lost. On SIGTERM it is deregistered first, waits until callers have left, and then ends what is under way.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import greeter_pb2
import greeter_pb2_grpc
import grpc

import grpc_etcd


class Greeter(greeter_pb2_grpc.GreeterServicer):
    def __init__(self, address: str) -> None:
        self._address = address

    def SayHello(  # noqa: N802  (protoc makes the name)
        self,
        request: greeter_pb2.HelloRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> greeter_pb2.HelloReply:
        return greeter_pb2.HelloReply(message=self._address)


def main() -> None:
    address, group, *_ = [*sys.argv[1:], "", ""]  # a group such as canary, for the routes of canary.py
    address = address or "0.0.0.0:50051"  # published as POD_IP or this machine's address
    on_this_machine_only = address.startswith("127.")  # for a trial; an address that nobody else can dial is refused
    with grpc_etcd.Registry.from_environ() as registry:
        native = grpc.server(ThreadPoolExecutor(16))
        greeter_pb2_grpc.add_GreeterServicer_to_server(Greeter(address), native)
        endpoint = grpc_etcd.Endpoint(name="greeter", address="", group=group)  # the address is that of the port
        server = registry.bind(native, endpoint, drain_seconds=1, allow_unroutable=on_this_machine_only)
        server.add_insecure_port(address)
        server.start()
        grpc_etcd.stop_on_sigterm(server, grace_seconds=10)
        server.wait_for_termination()


if __name__ == "__main__":
    main()
