"""Real gRPC channels that follow an etcd registry.

    registry = grpc_etcd.Registry("etcd:2379")
    with registry.insecure_channel("greeter") as channel:
        ...

Importing this package starts nothing and loads nothing but this file; each name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpc_etcd.client import Registry
    from grpc_etcd.compound import CompoundRegistry
    from grpc_etcd.default import default_registry, insecure_channel, secure_channel
    from grpc_etcd.registering.bound import stop_aio_on_sigterm, stop_on_sigterm
    from grpc_etcd.registering.registrar import Registration
    from grpc_etcd.registry.endpoint import Endpoint
    from grpc_etcd.registry.policy import (
        Balancing,
        LoadBalancing,
        LocalityPreference,
        OutlierDetection,
        Policy,
        Retry,
        RetryOn,
        ZonePreference,
    )
    from grpc_etcd.registry.snapshot import Snapshot
    from grpc_etcd.serving import serve
    from grpc_etcd.settings import SettingsError
    from grpc_etcd.stats import RegistryStats, ServiceStats
    from grpc_etcd.xds.service import MethodRoute

_HOMES = {
    "Registry": "client",
    "CompoundRegistry": "compound",
    "default_registry": "default",
    "insecure_channel": "default",
    "secure_channel": "default",
    "serve": "serving",
    "RegistryStats": "stats",
    "ServiceStats": "stats",
    "Registration": "registering.registrar",
    "stop_on_sigterm": "registering.bound",
    "stop_aio_on_sigterm": "registering.bound",
    "Endpoint": "registry.endpoint",
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
    "ZonePreference": "registry.policy",
}

__all__ = [
    "Balancing",
    "CompoundRegistry",
    "Endpoint",
    "LoadBalancing",
    "LocalityPreference",
    "MethodRoute",
    "OutlierDetection",
    "Policy",
    "Registration",
    "Registry",
    "RegistryStats",
    "Retry",
    "RetryOn",
    "ServiceStats",
    "SettingsError",
    "Snapshot",
    "ZonePreference",
    "default_registry",
    "insecure_channel",
    "secure_channel",
    "serve",
    "stop_aio_on_sigterm",
    "stop_on_sigterm",
]


if not TYPE_CHECKING:  # else a misspelt name would be Any to a type checker

    def __getattr__(name: str) -> Any:
        """Load a public name from its module."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
