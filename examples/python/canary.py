"""Sends a tenth of the calls of one method to the endpoints of the group `canary`, decided by this client alone.

For two servers to try it with: `python server.py ADDRESS stable` and `python server.py OTHER canary`.
"""

import sys
from collections import Counter

from greeter_pb2 import HelloRequest
from greeter_pb2_grpc import GreeterStub

import grpc_etcd

CANARY = grpc_etcd.MethodRoute(method="/helloworld.Greeter/SayHello", groups={"stable": 90, "canary": 10})

with grpc_etcd.Registry.from_environ() as registry:
    registry.configure("greeter", grpc_etcd.Policy(timeout_seconds=5), routes=[CANARY])
    registry.wait_for_endpoints("greeter", timeout_seconds=30, at_least=2)
    with registry.insecure_channel("greeter") as channel:
        greeter = GreeterStub(channel)
        calls = (greeter.SayHello(HelloRequest(name="you"), wait_for_ready=True) for _ in range(1000))
        for message, count in sorted(Counter(reply.message for reply in calls).items()):
            print(count, message)
    for fault in registry.stats()["greeter"].policy_faults:  # such as a group that no endpoint has
        print(fault, file=sys.stderr)
