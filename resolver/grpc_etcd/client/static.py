"""Services at fixed addresses: for one's own machine and for tests, where no etcd is at hand.

    registry = grpc_etcd.StaticRegistry({"greeter": "localhost:50051", "users": ["localhost:50061", "localhost:50062"]})

It is a `Registry` on a store in memory, so everything works with it: channels, policies, servers that register
themselves, several registries as one. `GRPC_ETCD_STATIC="greeter=localhost:50051;users=localhost:50061"` makes one of
`Registry.from_environ()`; where `GRPC_ETCD_ENDPOINTS` is set too, it goes before etcd for the services that it names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

from grpc_etcd.client.registry import Registry, RegistryOptions
from grpc_etcd.memory.fixed import static_store
from grpc_etcd.options import choose_static, taking

# What would change nothing here, and so was meant for a registry in etcd.
ABOUT_ETCD = (
    "prefix",
    "layouts",
    "user",
    "password",
    "password_file",
    "tls",
    "ca",
    "cert",
    "key",
    "server_name",
    "etcd_timeout_seconds",
    "cache_dir",
    "static",
)


class StaticRegistry(Registry):
    """A registry of services at fixed addresses: `StaticRegistry({"greeter": "localhost:50051"})`.

    A service has one `host:port`, or a sequence of them. Takes the options of `Registry` that do not concern etcd, such
    as `name`, `zone`, `region`, `cluster`, `client_id` and `pod_ip`; others raise a TypeError. Raises TypeError or
    ValueError, which name the service.
    """

    @taking(RegistryOptions, "StaticRegistry")
    def __init__(self, services: Mapping[str, str | Sequence[str]], **options: Unpack[RegistryOptions]) -> None:
        if given := [name for name in ABOUT_ETCD if options.get(name) is not None]:
            raise TypeError(
                f"StaticRegistry has no option {given[0]!r}, which is for etcd: it has only fixed addresses; "
                "Registry('etcd:2379', static={...}) has both"
            )
        super().__init__(static_store(choose_static(services)), **options)

    @classmethod
    def from_environ(cls, **_: Any) -> Self:
        """Raise a TypeError: use `Registry.from_environ`, which reads GRPC_ETCD_STATIC."""
        raise TypeError("Registry.from_environ() reads GRPC_ETCD_STATIC; a StaticRegistry is given its services")

    def __repr__(self) -> str:
        return f"<StaticRegistry {self.name!r}{' closed' if self.closed else ''}>"
