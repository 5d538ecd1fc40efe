"""Channels without a registry at hand: `grpc_etcd.insecure_channel("etcd:///greeter")`.

The default registry is made from the environment by the first such call and lives as long as the process; when it has
been closed, the next call makes another one. A target that is an address is passed on to gRPC.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from grpc_etcd import settings
from grpc_etcd.client.base import ChannelOptions
from grpc_etcd.client.registry import Registry
from grpc_etcd.client.targets import is_address
from grpc_etcd.xds.control_plane import this_process


class _Default:
    """The default registry of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registry: Registry | None = None

    def get(self) -> Registry:
        this_process().hand_down(self)
        with self._lock:
            if self._registry is None or self._registry.closed:
                self._registry = Registry.from_environ()
            return self._registry

    def forked(self) -> None:
        """Be a forked child's: a thread that is not there may have held the lock."""
        self._lock = threading.Lock()

    def exchange(self, registry: Registry | None) -> Registry | None:
        with self._lock:
            former, self._registry = self._registry, registry
            return former


_default = _Default()


@contextmanager
def standing_in(registry: Registry) -> Iterator[None]:
    """Let a registry be the default one, and what `Registry.from_environ` follows, for as long as the block runs."""
    former = _default.exchange(registry)
    try:
        with settings.standing_in(registry):
            yield
    finally:
        last = _default.exchange(former)
        if last is not None and last is not registry:
            last.close()  # it was made in place of one that had been closed


def default_registry() -> Registry:
    """Return the registry that the GRPC_ETCD_* variables configure; raises SettingsError if they are invalid.

    After it has been closed, the next call creates another one.
    """
    return _default.get()


def insecure_channel(
    target: str, options: ChannelOptions | None = None, compression: grpc.Compression | None = None
) -> grpc.Channel:
    """Return a channel to a service (`etcd:///name` or `name`) or, like `grpc.insecure_channel`, to an address."""
    if is_address(target):
        return grpc.insecure_channel(target, options, compression)
    return default_registry().insecure_channel(target, options, compression)


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """Return a channel over TLS to a service (`etcd:///name` or `name`) or, like `grpc.secure_channel`, an address."""
    if is_address(target):
        return grpc.secure_channel(target, credentials, options, compression)
    return default_registry().secure_channel(target, credentials, options, compression)
