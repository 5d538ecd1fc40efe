"""Turn what grpcio raises into errors of our tree: the one edge where both drivers do so."""

from typing import Any

import grpc

from grpc_etcd.etcd.errors import EtcdError, make_error


def translate(error: grpc.RpcError) -> EtcdError:
    """Return the EtcdError for the end of a call or stream, and let go of where it was raised.

    Both the sync and the aio kind know code() and details(). grpcio raises the call itself, whose traceback leads back
    to it: the garbage collector alone would find it. In a forked child that waits forever, for a lock which a thread
    of the parent's held when it was copied. And whoever keeps the error would keep the channel, which dials forever,
    with files that may be no good any more.
    """
    error.__traceback__ = None
    rpc: Any = error
    return make_error(rpc.code().name, rpc.details() or "")
