"""A client for `make test-cluster`: calls `greeter` by name without a break and logs a line of JSON a second.

Its settings come from the chart's ConfigMap alone. It runs from a ConfigMap in the operator's image, so it stands
alone. With WAIT_FOR_READY its calls wait where there is nobody to call, long enough to scale a service to 0 and back.
"""

import json
import os
import time

import grpc

import grpc_etcd

WAITS = os.environ.get("WAIT_FOR_READY") == "true"
CALL_SECONDS = 300 if WAITS else 10
PAUSE_SECONDS = 0.01


def main() -> None:
    """Call for ever."""
    registry = grpc_etcd.Registry.from_environ()
    channel = registry.insecure_channel("greeter")
    hello: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/helloworld.Greeter/SayHello")
    made = failed = 0
    seen: set[str] = set()
    said = time.monotonic()
    while True:
        try:
            seen.add(hello(b"", timeout=CALL_SECONDS, wait_for_ready=WAITS)[2:].decode())
        except grpc.RpcError as error:
            failed += 1
            print(json.dumps({"failed_call": str(error)}), flush=True)
        made += 1
        if time.monotonic() - said >= 1:
            print(json.dumps({"made": made, "failed": failed, "answered": sorted(seen)}), flush=True)
            seen, said = set(), time.monotonic()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
