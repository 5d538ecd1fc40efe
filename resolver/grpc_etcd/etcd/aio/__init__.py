"""The client for asyncio: the same names as `grpc_etcd.etcd`, to be awaited."""

from grpc_etcd.etcd.aio.client import Etcd
from grpc_etcd.etcd.aio.streams import KeepAlive, ListWatch

__all__ = ["Etcd", "KeepAlive", "ListWatch"]
