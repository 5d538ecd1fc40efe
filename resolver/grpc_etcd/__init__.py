"""Real gRPC channels that follow an etcd registry.

    registry = grpc_etcd.Registry("etcd:2379")
    with registry.insecure_channel("greeter") as channel:
        ...

Importing this package starts nothing and loads nothing but this file and what escapes its log; each name below is
loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from grpc_etcd import logs

if TYPE_CHECKING:
    from grpc_etcd.changes import ChangeSubscription
    from grpc_etcd.client import Registry, RegistryOptions
    from grpc_etcd.compound import CompoundRegistry
    from grpc_etcd.default import default_registry, insecure_channel, secure_channel
    from grpc_etcd.etcd.endpoints import Tls
    from grpc_etcd.etcd.errors import EtcdError
    from grpc_etcd.registering.bound import stop_aio_on_sigterm, stop_on_sigterm
    from grpc_etcd.registering.registrar import RegisterOptions, Registration, State, Status
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
    from grpc_etcd.selecting import SelectedRegistry
    from grpc_etcd.serving import serve
    from grpc_etcd.settings import SettingsError
    from grpc_etcd.static import StaticRegistry
    from grpc_etcd.stats import Metric, RegistryStats, ServiceStats
    from grpc_etcd.watching import ServicesWatch
    from grpc_etcd.xds.service import MethodRoute

_HOMES = {
    "Registry": "client",
    "RegistryOptions": "client",
    "StaticRegistry": "static",
    "SelectedRegistry": "selecting",
    "ChangeSubscription": "changes",
    "ServicesWatch": "watching",
    "EtcdError": "etcd.errors",
    "Tls": "etcd.endpoints",
    "CompoundRegistry": "compound",
    "default_registry": "default",
    "insecure_channel": "default",
    "secure_channel": "default",
    "serve": "serving",
    "RegistryStats": "stats",
    "ServiceStats": "stats",
    "Metric": "stats",
    "RegisterOptions": "registering.registrar",
    "Registration": "registering.registrar",
    "State": "registering.registrar",
    "Status": "registering.registrar",
    "stop_on_sigterm": "registering.bound",
    "stop_aio_on_sigterm": "registering.bound",
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
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
