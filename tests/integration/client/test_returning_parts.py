"""A group that leaves the routes and comes back under calls: a program of its own, since what goes wrong ends it."""

import subprocess
import sys

from testbed.environments import variables

SECONDS = 6
PROGRAM = f"""
import os, random, threading, time
import grpc
from grpc_etcd import Endpoint, MethodRoute, Policy, Retry
from grpc_etcd.testing import MemoryRegistry
from testbed.greeter import GreeterServer, say_hello

server = GreeterServer("127.0.87.1:0", threads=16)
registry = MemoryRegistry()
registry.set_endpoints("greeter", Endpoint(name="greeter", address=server.address, group="canary"))
to_canary = [MethodRoute(groups={{"canary": 1}})]
retried = Policy(retry=Retry(attempts=2))  # such a call holds its cluster until it is answered
registry.configure("greeter", retried, routes=to_canary)
channels = [registry.insecure_channel("greeter", [("of its own", number)]) for number in range(12)]

def call_for_ever(hello):
    while True:
        try:
            hello("x", timeout=0.5, metadata=[("x-delay-seconds", str(random.uniform(0, 0.02)))])
        except grpc.RpcError:
            pass

for channel in channels:
    threading.Thread(target=call_for_ever, args=(say_hello(channel),), daemon=True).start()
end = time.monotonic() + {SECONDS}
while time.monotonic() < end:
    for routes in ([], to_canary):
        registry.configure("greeter", retried, routes=routes)
        time.sleep(0.015)
if say_hello(channels[0])("x", timeout=25) == server.address:
    print("alive", flush=True)
os._exit(0)
"""


def test_a_process_outlives_a_group_that_comes_and_goes() -> None:
    """The same name as before ended it within two seconds (grpcio 1.85.3), in 5 of 5 runs."""
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "alive" in ended.stdout
