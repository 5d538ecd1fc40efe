"""etcd for asyncio: the same names as for threads, with await and async for. A thin driver of the core."""

from grpc_etcd.etcd.aio.client import Etcd
from grpc_etcd.etcd.aio.hub import WatchHub
from grpc_etcd.etcd.aio.streams import KeepAlive, ListWatch

__all__ = ["Etcd", "KeepAlive", "ListWatch", "WatchHub"]
