"""Channels without a registry at hand: `grpc_etcd.insecure_channel("etcd:///greeter")`.

The default registry is made from the environment by the first such call and lives as long as the process.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import grpc

from grpc_etcd.client import Registry
from grpc_etcd.following import ChannelOptions

_SCHEME = "etcd"


class _Default:
    """The default registry of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registry: Registry | None = None

    def get(self) -> Registry:
        with self._lock:
            if self._registry is None:
                self._registry = Registry.from_environ()
            return self._registry

    def exchange(self, registry: Registry | None) -> Registry | None:
        with self._lock:
            former, self._registry = self._registry, registry
            return former


_default = _Default()


@contextmanager
def standing_in(registry: Registry) -> Iterator[None]:
    """Let a registry be the default one for as long as the block runs."""
    former = _default.exchange(registry)
    try:
        yield
    finally:
        _default.exchange(former)


def default_registry() -> Registry:
    """Give the registry of the GRPC_ETCD_* environment; raises SettingsError when it is not complete."""
    return _default.get()


def insecure_channel(
    target: str, options: ChannelOptions | None = None, compression: grpc.Compression | None = None
) -> grpc.Channel:
    """Give a channel to `etcd:///name`, or just `name`."""
    return default_registry().insecure_channel(service_of(target), options, compression)


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """Give a channel over TLS to `etcd:///name`, or just `name`."""
    return default_registry().secure_channel(service_of(target), credentials, options, compression)


def service_of(target: str) -> str:
    """Give the name in `etcd:///name`; a bare name is itself."""
    if "://" not in target:
        return target
    parts = urlsplit(target)
    if parts.scheme != _SCHEME or parts.netloc:
        raise ValueError(f"the target {target!r} is not of the form etcd:///name")
    return unquote(parts.path.removeprefix("/"))
