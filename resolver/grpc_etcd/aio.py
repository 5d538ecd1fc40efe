"""The registry for asyncio: `registry.aio`, and channels of the default registry."""

from grpc_etcd.client.aio import AioCompoundRegistry, AioEtcdRegistry, AioRegistry, insecure_channel, secure_channel

__all__ = ["AioCompoundRegistry", "AioEtcdRegistry", "AioRegistry", "insecure_channel", "secure_channel"]
