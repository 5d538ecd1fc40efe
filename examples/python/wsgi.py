"""The same for a server that forks, with the channel made before the fork: `gunicorn --preload --workers 2 wsgi:app`.

A channel that a worker inherits is replaced there by one of the worker's own at its first call.
"""

from collections.abc import Callable, Iterable
from typing import Any

from greeter_pb2 import HelloRequest
from greeter_pb2_grpc import GreeterStub

import grpc_etcd

GREETER = GreeterStub(grpc_etcd.insecure_channel("etcd:///greeter"))
GREETER.SayHello(HelloRequest(name="the parent"), timeout=30, wait_for_ready=True)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    reply = GREETER.SayHello(HelloRequest(name=environ["PATH_INFO"].lstrip("/")), timeout=30, wait_for_ready=True)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [reply.message.encode()]
