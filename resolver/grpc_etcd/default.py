"""Channels without a registry at hand: `grpc_etcd.insecure_channel("etcd:///greeter")`.

The default registry is made from the environment by the first such call and lives as long as the process.
"""

import threading
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


_default = _Default()


def default_registry() -> Registry:
    """Give the registry of the GRPC_ETCD_* environment; raises SettingsError when it is not complete."""
    return _default.get()


def insecure_channel(
    target: str, options: ChannelOptions | None = None, compression: grpc.Compression | None = None
) -> grpc.Channel:
    """Give a channel to `etcd:///name`, or just `name`."""
    return default_registry().insecure_channel(_service_of(target), options, compression)


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: ChannelOptions | None = None,
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """Give a channel over TLS to `etcd:///name`, or just `name`."""
    return default_registry().secure_channel(_service_of(target), credentials, options, compression)


def _service_of(target: str) -> str:
    if "://" not in target:
        return target
    parts = urlsplit(target)
    if parts.scheme != _SCHEME or parts.netloc:
        raise ValueError(f"the target {target!r} is not of the form etcd:///name")
    return unquote(parts.path.removeprefix("/"))
