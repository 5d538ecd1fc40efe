"""Calls the greeter by name for as long as it runs, and says each second how many calls succeeded and failed.

Its only settings are the variables GRPC_ETCD_*, which the chart's ConfigMap holds. It ends with 1 if any call failed.
"""

import signal
import sys
import threading
from collections import Counter

import greeter_pb2
import greeter_pb2_grpc
import grpc

import grpc_etcd

PAUSE_SECONDS = 0.01
CALLS_PER_LINE = 100
WAIT_SECONDS = 60


def wait_for_greeter(stop: threading.Event) -> bool:
    """Wait for the first endpoint, and look now and then whether to end instead."""
    for seconds_left in range(WAIT_SECONDS, 0, -1):
        try:
            grpc_etcd.default_registry().wait_for_endpoints("greeter", timeout_seconds=1)
        except TimeoutError:
            if stop.is_set():
                return False
            if seconds_left == 1:
                raise
        else:
            return True
    return False


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if not wait_for_greeter(stop):
        return 0
    outcomes: Counter[str] = Counter()
    last = ""
    with grpc_etcd.insecure_channel("etcd:///greeter") as channel:
        stub = greeter_pb2_grpc.GreeterStub(channel)
        while not stop.wait(PAUSE_SECONDS):
            try:
                reply = stub.SayHello(greeter_pb2.HelloRequest(name="world"), timeout=5)
                outcomes["ok"] += 1
                last = reply.message
            except grpc.RpcError as error:
                outcomes["failed"] += 1
                print(f"failed: {error}", flush=True)
            if outcomes.total() % CALLS_PER_LINE == 0:
                print(f"{outcomes['ok']} calls, {outcomes['failed']} failed, last: {last}", flush=True)
    print(f"{outcomes['ok']} calls, {outcomes['failed']} failed", flush=True)
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
