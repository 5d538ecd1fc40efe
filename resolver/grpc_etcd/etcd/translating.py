"""Turn what grpcio raises into errors of our tree: the one edge where both drivers do so."""

from typing import Any

import grpc

from grpc_etcd.etcd.errors import EtcdError, make_error


def translate(error: grpc.RpcError) -> EtcdError:
    """Return the EtcdError for an RpcError; both the sync and the aio kind know code() and details()."""
    rpc: Any = error
    return make_error(rpc.code().name, rpc.details() or "")
