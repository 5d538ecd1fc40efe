"""Channels of the default registry for asyncio: `grpc_etcd.aio.insecure_channel("etcd:///greeter")`."""

from collections.abc import Sequence

import grpc
from grpc import aio

from grpc_etcd.client.base import ChannelOptions
from grpc_etcd.client.default import default_registry
from grpc_etcd.client.targets import is_address


def insecure_channel(
    target: str,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[aio.ClientInterceptor] | None = None,
) -> aio.Channel:
    """Return a channel to a service (`etcd:///name` or `name`) or, like `grpc.aio`, to an address."""
    if is_address(target):
        return aio.insecure_channel(target, options, compression, interceptors=interceptors)
    return default_registry().aio.insecure_channel(target, options, compression, interceptors)


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[aio.ClientInterceptor] | None = None,
) -> aio.Channel:
    """Return a channel over TLS to a service (`etcd:///name` or `name`) or, like `grpc.aio`, to an address."""
    if is_address(target):
        return aio.secure_channel(target, credentials, options, compression, interceptors=interceptors)
    return default_registry().aio.secure_channel(target, credentials, options, compression, interceptors)
