"""The registry as an application sees it: names in, channels out, and its own servers in as well."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import grpc

from grpc_etcd import settings
from grpc_etcd.aio import AioEtcdRegistry
from grpc_etcd.cache import Cache
from grpc_etcd.etcd import Etcd, Tls
from grpc_etcd.feed import EtcdReader, Feed
from grpc_etcd.following import Following
from grpc_etcd.registering.bound import DRAIN_SECONDS, Binding, BoundServer
from grpc_etcd.registering.registrar import RegisterOptions, Registrar, Registration, withdrawing
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.layouts import make_layout
from grpc_etcd.registry.snapshot import SnapshotBuilder
from grpc_etcd.view import Reader
from grpc_etcd.xds.localities import Here


class RegistryOptions(TypedDict, total=False):
    """Everything a `Registry` can be told besides where etcd is."""

    prefix: str | None  # key prefix of the layouts that have one; None: the layout's own default
    layouts: Sequence[str | Layout]  # the formats to read (and to register in), the preferred one first
    name: str | None  # what this registry is called in targets; None: `default`, then `default-2`, ...
    user: str
    password: str | Path | Callable[[], str]  # a Path is read again at each log-in
    tls: Tls | None
    zone: str  # where this client runs, for policies that prefer the own zone
    region: str
    client_id: str  # which endpoints of a large set this client takes; default: the host's name
    cache_dir: str | Path | None  # keep last good sets here for cold starts
    pod_ip: str  # the address to register in place of 0.0.0.0
    schemes: Iterable[str]  # which endpoints to take; default: grpc


class Registry(Following):
    """A registry of gRPC services in etcd: `Registry("etcd:2379")`.

    Takes etcd's endpoints, or an etcd client of `grpc_etcd.etcd` (which stays the caller's to close).
    """

    def __init__(self, etcd: str | Sequence[str] | EtcdReader, **options: Unpack[RegistryOptions]) -> None:
        self._source = etcd
        self._options = options
        self._prefix = options.get("prefix")
        chosen = options.get("layouts", ("jupiter",))
        self.layouts = tuple(make_layout(each, self._prefix) if isinstance(each, str) else each for each in chosen)
        client_id = options.get("client_id", "") or settings.host_name()
        self._registrars: dict[int, Registrar] = {}
        super().__init__(options.get("name"), Here(options.get("zone", ""), options.get("region", ""), client_id))

    @classmethod
    def from_environ(cls, **overrides: Any) -> Self:
        """Make a registry from GRPC_ETCD_ENDPOINTS and the other variables; overrides have the settings' names."""
        return cls.from_settings(settings.read_settings(**overrides))

    @classmethod
    def from_settings(cls, chosen: settings.ClientSettings) -> Self:
        """Make a registry from settings."""
        tls = Tls(chosen.ca or None, chosen.cert or None, chosen.key or None) if chosen.ca or chosen.cert else None
        return cls(
            chosen.endpoints,
            prefix=chosen.prefix,
            layouts=chosen.layouts,
            name=chosen.name,
            user=chosen.user,
            password=Path(chosen.password_file) if chosen.password_file else chosen.password,
            tls=tls,
            zone=chosen.zone,
            region=chosen.region,
            client_id=chosen.client_id,
            cache_dir=chosen.cache_dir or None,
            pod_ip=chosen.pod_ip,
        )

    def __repr__(self) -> str:
        return f"<Registry {self.name!r} at {self._source!r}{' closed' if self._closed else ''}>"

    @property
    def aio(self) -> AioEtcdRegistry:
        """The same registry for asyncio."""
        return AioEtcdRegistry(self)

    def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's endpoints from etcd now; raises EtcdError when it cannot be read."""
        builder = SnapshotBuilder(service, self.layouts, schemes=self._options.get("schemes", ("grpc",)))
        listings = [self.etcd.get_prefix(prefix) for prefix in builder.prefixes]
        records = [(record.key, record.value) for listing in listings for record in listing.records]
        builder.replace(records, max(listing.revision for listing in listings))
        return builder.snapshot().endpoints

    @property
    def etcd(self) -> Any:
        """The etcd client of this registry in this process; made at the first use."""
        return self._enter().opened

    # Registering

    @property
    def registrar(self) -> Registrar:
        """What keeps this process's own endpoints registered; made at the first use, and anew in a forked child."""
        etcd = self.etcd
        with self._lock:
            if self._process.forks not in self._registrars:
                pod_ip = self._options.get("pod_ip", "")
                self._registrars = {self._process.forks: Registrar(etcd, self.layouts, pod_ip=pod_ip)}
            return self._registrars[self._process.forks]

    def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> Registration:
        """Keep an endpoint registered from now on, as `Registrar.register` says; returns at once."""
        return self.registrar.register(endpoint, **options)

    def unregister(self, which: Registration | Endpoint, timeout_seconds: float = 5.0) -> bool:
        """Withdraw an endpoint of this process; False when etcd did not confirm it in time."""
        return self.registrar.unregister(which, timeout_seconds)

    def registered(
        self, endpoint: Endpoint, **options: Unpack[RegisterOptions]
    ) -> AbstractContextManager[Registration]:
        """Keep an endpoint registered for as long as the block runs."""
        return withdrawing(self.register(endpoint, **options))

    def bind(
        self,
        server: grpc.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        **options: Unpack[RegisterOptions],
    ) -> BoundServer:
        """Give a server that is registered from its `start` to its `stop`.

        With a name in place of an endpoint, the first port that is added is registered. `stop` withdraws, then waits
        `drain_seconds`, so that callers have left before the server does.
        """
        return BoundServer(server, Binding(lambda each: (self.register(each, **options),), endpoint, drain_seconds))

    def _make_feed(self, service: str, changed: Callable[[], None]) -> Feed:
        prefix = "jupiter" if self._prefix is None else self._prefix  # where the operator keeps the policy by default
        reader = Reader(service, self.layouts, prefix, self._options.get("schemes", ("grpc",)))
        folder = self._options.get("cache_dir")
        cache = Cache(Path(folder), f"{self._source}{self._prefix}", service) if folder else None
        return Feed(service, reader, self.etcd, changed, cache)

    def _open(self) -> Any:
        if not isinstance(self._source, str | Sequence):
            return self._source
        return Etcd(
            self._source,
            user=self._options.get("user", ""),
            password=self._options.get("password", ""),
            tls=self._options.get("tls"),
        )

    def _close(self, opened: Any) -> None:
        if registrar := self._registrars.pop(self._process.forks, None):
            registrar.close()
        if opened is not self._source:
            opened.close()
