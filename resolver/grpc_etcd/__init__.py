"""gRPC channels that resolve services from an etcd registry.

    registry = grpc_etcd.Registry("etcd:2379")
    with registry.insecure_channel("greeter") as channel:
        ...

Importing this package starts no thread, and loads only this file and the escaping of log records; each name below is
loaded at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from grpc_etcd import logs

if TYPE_CHECKING:
    from grpc_etcd import aio as aio
    from grpc_etcd import testing as testing
    from grpc_etcd.client.ads import serve
    from grpc_etcd.client.changes import ChangeSubscription
    from grpc_etcd.client.compound import CompoundRegistry
    from grpc_etcd.client.default import default_registry, insecure_channel, secure_channel
    from grpc_etcd.client.registry import Registry, RegistryOptions
    from grpc_etcd.client.selection import SelectedRegistry
    from grpc_etcd.client.static import StaticRegistry
    from grpc_etcd.client.stats import Metric, RegistryStats, ServiceStats
    from grpc_etcd.discovery.services_watch import ServicesWatch
    from grpc_etcd.etcd.endpoints import Tls
    from grpc_etcd.etcd.errors import EtcdError
    from grpc_etcd.registration.registrar import RegisterOptions, Registration, State, Status
    from grpc_etcd.registration.server import BoundAioServer, BoundServer, stop_aio_on_sigterm, stop_on_sigterm
    from grpc_etcd.registry.endpoint import Endpoint
    from grpc_etcd.registry.layout import Layout
    from grpc_etcd.registry.policy import (
        Balancing,
        LoadBalancing,
        LocalityPreference,
        OutlierDetection,
        Policy,
        Retry,
        RetryOn,
        SlowStart,
        ZonePreference,
    )
    from grpc_etcd.registry.snapshot import Snapshot
    from grpc_etcd.settings import SettingsError
    from grpc_etcd.xds.service import MethodRoute

_MODULES = ("aio", "testing")
_HOMES = {
    "Registry": "client.registry",
    "RegistryOptions": "client.registry",
    "StaticRegistry": "client.static",
    "SelectedRegistry": "client.selection",
    "ChangeSubscription": "client.changes",
    "ServicesWatch": "discovery.services_watch",
    "EtcdError": "etcd.errors",
    "Tls": "etcd.endpoints",
    "CompoundRegistry": "client.compound",
    "default_registry": "client.default",
    "insecure_channel": "client.default",
    "secure_channel": "client.default",
    "serve": "client.ads",
    "RegistryStats": "client.stats",
    "ServiceStats": "client.stats",
    "Metric": "client.stats",
    "RegisterOptions": "registration.registrar",
    "Registration": "registration.registrar",
    "State": "registration.registrar",
    "Status": "registration.registrar",
    "BoundAioServer": "registration.server",
    "BoundServer": "registration.server",
    "stop_on_sigterm": "registration.server",
    "stop_aio_on_sigterm": "registration.server",
    "Endpoint": "registry.endpoint",
    "Layout": "registry.layout",
    "Snapshot": "registry.snapshot",
    "SettingsError": "settings",
    "MethodRoute": "xds.service",
    "Balancing": "registry.policy",
    "LoadBalancing": "registry.policy",
    "LocalityPreference": "registry.policy",
    "OutlierDetection": "registry.policy",
    "Policy": "registry.policy",
    "Retry": "registry.policy",
    "RetryOn": "registry.policy",
    "SlowStart": "registry.policy",
    "ZonePreference": "registry.policy",
}

__all__ = [
    "Balancing",
    "BoundAioServer",
    "BoundServer",
    "ChangeSubscription",
    "CompoundRegistry",
    "Endpoint",
    "EtcdError",
    "Layout",
    "LoadBalancing",
    "LocalityPreference",
    "MethodRoute",
    "Metric",
    "OutlierDetection",
    "Policy",
    "RegisterOptions",
    "Registration",
    "Registry",
    "RegistryOptions",
    "RegistryStats",
    "Retry",
    "RetryOn",
    "SelectedRegistry",
    "ServiceStats",
    "ServicesWatch",
    "SettingsError",
    "SlowStart",
    "Snapshot",
    "State",
    "StaticRegistry",
    "Status",
    "Tls",
    "ZonePreference",
    "default_registry",
    "insecure_channel",
    "secure_channel",
    "serve",
    "stop_aio_on_sigterm",
    "stop_on_sigterm",
]


logs.set_up()

if not TYPE_CHECKING:  # else a misspelt name would be Any to a type checker

    def __getattr__(name: str) -> Any:
        """Load a public name from its module."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
