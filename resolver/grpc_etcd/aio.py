"""The registry for asyncio: `registry.aio`, and channels of the default registry."""

from grpc_etcd.client.aio import AioRegistry
from grpc_etcd.client.compound import AioCompoundRegistry
from grpc_etcd.client.default_aio import insecure_channel, secure_channel
from grpc_etcd.client.registry import AioEtcdRegistry
from grpc_etcd.client.selection import AioSelectedRegistry

__all__ = [
    "AioCompoundRegistry",
    "AioEtcdRegistry",
    "AioRegistry",
    "AioSelectedRegistry",
    "insecure_channel",
    "secure_channel",
]
