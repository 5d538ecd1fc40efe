"""Ring hash under calls while the set changes: a program of its own, since what goes wrong ends the process."""

import subprocess
import sys

import pytest

from testbed.environments import variables

SECONDS = 8
PROGRAM = f"""
import os, random, threading, time
import grpc
from grpc_etcd import Balancing, LoadBalancing, Policy
from grpc_etcd.testing import MemoryRegistry
from testbed.greeter import GreeterServer, say_hello

server = GreeterServer("127.0.88.1:0", threads=4)
addresses = [server.address, *(f"127.0.88.{{number}}:9" for number in range(2, 40))]  # nobody listens on the others
registry = MemoryRegistry()
registry.configure("greeter", Policy(load_balancing=LoadBalancing(type=Balancing.RING_HASH, hash_header="x")))
registry.set_endpoints("greeter", *addresses)
channels = [registry.insecure_channel("greeter", [("of its own", number)]) for number in range(4)]

def call_for_ever(hello):
    while True:
        try:
            hello("x", timeout=0.5, metadata=[("x", str(random.random()))])
        except grpc.RpcError:
            pass

for channel in channels * 2:
    threading.Thread(target=call_for_ever, args=(say_hello(channel),), daemon=True).start()
end = time.monotonic() + {SECONDS}
while time.monotonic() < end:
    for few in (1, len(addresses)):
        registry.set_endpoints("greeter", *addresses[:few])
        time.sleep(0.03)
print("alive after", registry.stats()["greeter"].updates, flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def stressed() -> subprocess.CompletedProcess[str]:
    """Change a set from 39 endpoints to one and back under the calls of eight threads."""
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=60, check=False)


def test_a_process_outlives_the_changes_of_a_ring(stressed: subprocess.CompletedProcess[str]) -> None:
    """A ring that is changed, not replaced, ended it (grpcio 1.85.3) in 2 of 3 runs; without the limit in 3 of 3."""
    assert stressed.returncode == 0, stressed.stderr[-2000:]


def test_a_set_that_never_rests_makes_few_rings(stressed: subprocess.CompletedProcess[str]) -> None:
    """Since gRPC keeps each for 15 minutes, 0.3 MB of 40 endpoints; without a limit there were more than 200."""
    assert 20 < int(stressed.stdout.split()[-1]) < 120, stressed.stdout
