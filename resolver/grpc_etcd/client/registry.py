"""The registry as an application sees it: names in, channels out, and its own servers in as well."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypedDict, Unpack

from grpc_etcd import options as checks
from grpc_etcd import settings
from grpc_etcd.client import etcd_options
from grpc_etcd.client.selection import AioSelectedRegistry, SelectedRegistry, check_metadata
from grpc_etcd.client.targets import service_name
from grpc_etcd.client.union import UnionSubscription
from grpc_etcd.client.writable import AioWritableRegistry, WritableRegistry
from grpc_etcd.discovery.disk_cache import Cache
from grpc_etcd.discovery.registry_watch import EtcdReader, RegistryWatch
from grpc_etcd.discovery.services_watch import ForkableWatch, ServicesWatch
from grpc_etcd.discovery.state import Reader
from grpc_etcd.discovery.subscription import ServiceSubscription, StateSource
from grpc_etcd.etcd import Etcd, Listing, PermissionDenied, Tls
from grpc_etcd.etcd.client import TIMEOUT_SECONDS
from grpc_etcd.memory.fixed import StaticStore, static_store
from grpc_etcd.registration.offloop import in_own_thread
from grpc_etcd.registration.registrar import (
    LEASE_TTL_SECONDS,
    STOP_SECONDS,
    RegisterOptions,
    Registrar,
    Registration,
    check_times,
    deregister_all_async,
)
from grpc_etcd.registry.catalog import Catalog
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.snapshot import SnapshotBuilder
from grpc_etcd.xds.localities import Here


class RegistryOptions(TypedDict, total=False):
    """The options of a `Registry`, besides etcd's endpoints; any other option raises a TypeError.

    * `prefix`: the key prefix, for layouts that have one; None, the default, is the layout's own.
    * `layouts`: the layouts to read and to register in, the preferred one first: names or `Layout`s, one or several.
      Default: `jupiter`.
    * `name`: the name of this registry in targets; None, the default, is `default`, then `default-2`, ...
    * `user`, and `password` or `password_file`: credentials for etcd. A password may be a string, a Path, or a function
      that returns it; it is read again at each login.
    * `tls`, or `ca`, `cert`, `key` (files) and `server_name`: enable TLS to etcd, see `Tls`.
    * `etcd_timeout_seconds`: the timeout of one etcd request (above 0; default 5).
    * `zone`, `region`, `cluster`: where this client runs, for policies that prefer near endpoints. `cluster` is the
      client's Kubernetes cluster, as in the metadata `cluster` of the endpoints there.
    * `client_id`: selects this client's subset of a large service. Default: the host name.
    * `cache_dir`: a folder that caches the last known endpoints, so that a cold start works during an etcd outage.
      Default: none.
    * `pod_ip`: the IP address to register in place of 0.0.0.0.
    * `schemes`: the schemes of the endpoints to use, one or several. Default: `grpc`.
    * `lease_ttl_seconds`: how long a killed server stays registered (default 30).
    * `stop_seconds`: the time limit for deregistering, draining and closing together (default 5).
    * `static`: services at fixed addresses, which are not read from etcd: `{"greeter": "localhost:50051"}`.
    """

    prefix: str | None
    layouts: str | Layout | Sequence[str | Layout]
    name: str | None
    user: str
    password: str | Path | Callable[[], str]
    password_file: str | Path | None
    tls: Tls | None
    ca: str | Path | None
    cert: str | Path | None
    key: str | Path | None
    server_name: str
    etcd_timeout_seconds: float
    zone: str
    region: str
    cluster: str
    client_id: str
    cache_dir: str | Path | None
    pod_ip: str
    schemes: str | Iterable[str]
    lease_ttl_seconds: int
    stop_seconds: float
    static: Mapping[str, str | Sequence[str]]


class OptionsInCode(TypedDict, total=False):
    """The options of a `Registry` that no variable of the environment has."""

    tls: Tls | None
    schemes: str | Iterable[str]
    lease_ttl_seconds: int
    stop_seconds: float


_WITHOUT_ETCD = (
    f"there is no etcd: add it to {settings.PREFIX}STATIC or to the services that the program gives, or set "
    f"{settings.PREFIX}ENDPOINTS to find it in etcd"
)
_IN_CODE = tuple(OptionsInCode.__annotations__)


class Registry(WritableRegistry[Registration]):
    """A registry of gRPC services in etcd: `Registry("etcd:2379", ca="ca.crt", user="app", password_file="secret")`.

    Takes etcd's endpoints, or an etcd client of `grpc_etcd.etcd` (which the caller closes), and the options of
    `RegistryOptions`. Raises TypeError or ValueError for invalid arguments; connects at the first use. One registry per
    process is enough: it is thread-safe, and works in forked children too.
    """

    @checks.taking(RegistryOptions, "Registry")
    def __init__(self, etcd: str | Sequence[str] | EtcdReader, **options: Unpack[RegistryOptions]) -> None:
        if isinstance(etcd, str | Sequence):
            etcd_options.check_endpoints(etcd)
        elif not callable(getattr(etcd, "list_watch", None)):
            raise TypeError(
                f"{etcd!r} is neither etcd's endpoints, such as 'etcd:2379', nor a client of grpc_etcd.etcd"
            )
        elif inspect.iscoroutinefunction(getattr(etcd, "get_prefix", None)):
            raise TypeError(
                f"{etcd!r} is of asyncio, and a registry works in threads: give grpc_etcd.etcd.Etcd(...), or etcd's"
                " endpoints; registry.aio is for asyncio either way"
            )
        checks.check_options(options)
        self._source = etcd
        self._options = options
        self._prefix = options.get("prefix")
        self._password = etcd_options.choose_password(options)
        self._tls = etcd_options.choose_tls(options)
        self.layouts = checks.choose_layouts(options.get("layouts", "jupiter"), self._prefix)
        self._schemes = checks.choose_schemes(options.get("schemes", "grpc"))
        self._static_names = checks.choose_static(options.get("static", {}))
        self._static: Registry | None = None
        client_id = options.get("client_id", "") or settings.host_name()
        self._registrars: dict[int, Registrar] = {}
        self._registry_watches: dict[int, RegistryWatch] = {}
        self.stop_seconds = options.get("stop_seconds", STOP_SECONDS)
        self._lease_ttl_seconds = options.get("lease_ttl_seconds", LEASE_TTL_SECONDS)
        check_times(self._lease_ttl_seconds, self.stop_seconds)
        self._watches: list[ServicesWatch] = []
        self._selections: dict[frozenset[tuple[str, str]], SelectedRegistry] = {}
        place = (options.get("zone", ""), options.get("region", ""), client_id, options.get("cluster", ""))
        super().__init__(options.get("name"), Here(*place))

    @classmethod
    @checks.taking(settings.ClientSettings, "Registry.from_environ", OptionsInCode)
    def from_environ(cls, **overrides: Any) -> Self:
        """Create a registry from GRPC_ETCD_ENDPOINTS and the other variables; arguments override the variables.

        Also takes options of `Registry` that have no variable: `lease_ttl_seconds`, `stop_seconds`, `schemes` and
        `tls`, which replaces the variables for TLS. Raises SettingsError, with a sentence for each error. While
        `testing.as_default` or the pytest fixture `grpc_etcd_registry` is in use, the new registry follows the same
        services as the registry given there.
        """
        original = settings.stand_in()
        if isinstance(original, Registry):
            own = {
                name: overrides[name]
                for name in ("name", "zone", "region", "cluster", "client_id", *_IN_CODE)
                if overrides.get(name) is not None
            }
            return cls(original._source, **{**original._options, "name": None, **own})  # noqa: SLF001  of this class
        own = {name: overrides.pop(name) for name in _IN_CODE if name in overrides}
        if own.get("tls") is not None:
            overrides |= dict.fromkeys(("ca", "cert", "key", "server_name"), "")
        chosen = settings.read_settings(find_more=etcd_options.settings_faults, **overrides)
        given = {name: value for name, value in own.items() if value is not None}
        return cls(chosen.endpoints or StaticStore(), **{**_read(chosen), **given})

    @classmethod
    def from_settings(cls, chosen: settings.ClientSettings) -> Self:
        """Create a registry from settings. Without etcd endpoints it has only the static services."""
        return cls(chosen.endpoints or StaticStore(), **_read(chosen))

    def __repr__(self) -> str:
        return f"<Registry {self.name!r} at {self._source!r}{' closed' if self._closed else ''}>"

    @property
    def aio(self) -> "AioEtcdRegistry":
        """The same registry for asyncio."""
        return AioEtcdRegistry(self)

    def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's endpoints from etcd now, sorted by address; raises EtcdError if they cannot be read."""
        service = service_name(service)
        if static := self._static_part(service):
            return static.read_endpoints(service)
        builder = SnapshotBuilder(service, self.layouts, schemes=self._schemes)
        listings = list_at_once(self.etcd, builder.prefixes)
        records = [(record.key, record.value) for listing in listings for record in listing.records]
        builder.replace(records, max(listing.revision for listing in listings))
        return builder.snapshot().endpoints

    def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Read all services from etcd now: their endpoints by name. Raises EtcdError if they cannot be read.

        A service without a valid record has no endpoints. Needs permission to read the layouts' whole prefix.
        """
        catalog = Catalog(self.layouts, self._schemes)
        for listing in list_at_once(self.etcd, catalog.prefixes):
            catalog.apply(((record.key, record.value) for record in listing.records), listing.revision)
        fixed = {name: self.read_endpoints(name) for name in self._static_names}
        return MappingProxyType(dict(sorted({**catalog.services(), **fixed}.items())))

    def watch_all(self) -> ServicesWatch:
        """Iterate over all services: what `services` returns now, and again after each change.

        Static services are not included, because they do not change. Ends when the iterator or the registry is closed.
        Raises PermissionDenied if the etcd user may not read the layouts' whole prefix. During an etcd outage the
        iterator waits, and then continues with the changes that it missed.
        """
        catalog = Catalog(self.layouts, self._schemes)
        followed = ForkableWatch(self.etcd, catalog.prefixes)
        self._process.take_along(followed)
        watch = ServicesWatch(followed, catalog)
        with self._lock:
            self._watches = [*(each for each in self._watches if not each.closed), watch]
        return watch

    def select(self, *, metadata: Mapping[str, str]) -> SelectedRegistry:
        """Return a registry of only those endpoints that have these metadata, such as `{"version": "v2"}`.

        The same metadata return the same object, which is closed with this registry. If no endpoint matches, calls fail
        as those to an empty service. Raises TypeError for invalid metadata, ValueError once this registry is closed.
        """
        wanted = frozenset(check_metadata(metadata).items())
        with self._lock:
            if self._closed:
                raise ValueError(f"{self!r} cannot be used any more")
            if wanted not in self._selections or self._selections[wanted].closed:
                self._selections[wanted] = SelectedRegistry(self, metadata, self.here)
            return self._selections[wanted]

    @property
    def etcd(self) -> Any:
        """The etcd client of this registry in this process; created at the first use."""
        return self._enter().opened

    # Registering

    @property
    def registrar(self) -> Registrar:
        """The registrar of this process's own endpoints; created at the first use, and again in a forked child."""
        etcd = self.etcd
        with self._lock:
            if self._process.forks not in self._registrars:
                registrar = Registrar(
                    etcd,
                    self.layouts,
                    pod_ip=self._options.get("pod_ip", ""),
                    lease_ttl_seconds=self._lease_ttl_seconds,
                    stop_seconds=self.stop_seconds,
                    prefix=self._prefix,
                )
                self._registrars = {self._process.forks: registrar}
            return self._registrars[self._process.forks]

    @checks.taking(RegisterOptions, ".register")
    def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> Registration:
        """Keep an endpoint registered until it is unregistered or the registry is closed; returns at once.

        Replaces an earlier registration of the same address. A wildcard host (0.0.0.0, [::]) becomes POD_IP or this
        machine's routable address. Raises ValueError if other hosts cannot reach the address, unless `allow_unroutable`
        is set.
        """
        return self.registrar.register(endpoint, **options)

    def unregister(self, which: Registration | Endpoint, timeout_seconds: float | None = None) -> bool:
        """Deregister an endpoint of this process; returns False if etcd did not confirm it in time (`stop_seconds`)."""
        return self.registrar.unregister(which, timeout_seconds)

    def all_registrars(self) -> Sequence[Registrar]:
        """Return the only one."""
        return (self.registrar,)

    def known_registrars(self) -> Sequence[Registrar]:
        """Return it if it is in use."""
        registrar = self._registrars.get(self._process.forks)
        return () if registrar is None else (registrar,)

    # Following

    def _static_part(self, service: str) -> "Registry | None":
        """Return the registry of static services, for those that are; made at the first use."""
        if service not in self._static_names:
            return None
        with self._lock:
            if self._static is None:
                self._static = Registry(static_store(self._static_names), name=f"{self.name}-static")
            return self._static

    def _make_feed(self, service: str, changed: Callable[[], None]) -> StateSource:
        if static := self._static_part(service):
            return UnionSubscription(service, (static,), changed)
        prefix = "jupiter" if self._prefix is None else self._prefix  # where the operator keeps the policy by default
        reader = Reader(service, self.layouts, prefix, self._schemes)
        folder = self._options.get("cache_dir")
        kept_of = f"{self._source}{self._prefix} {b' '.join(reader.prefixes).decode(errors='replace')}"
        cache = Cache(Path(folder), kept_of, service) if folder else None
        feed = ServiceSubscription(service, reader, self._registry_watch(), changed, cache)
        if isinstance(self._source, StaticStore):
            names = sorted({*self._static_names, *self._source.names})
            feed.whereabouts = f"{service} among the static services ({', '.join(names) or 'none'})"
            feed.advice = _WITHOUT_ETCD
        return feed

    def _registry_watch(self) -> RegistryWatch:
        """What the feeds of this process share; made at the first use, and again in a forked child."""
        etcd = self.etcd
        with self._lock:
            if self._process.forks not in self._registry_watches:
                where = self._source if isinstance(self._source, str) else ", ".join(map(str, _listed(self._source)))
                self._registry_watches = {self._process.forks: RegistryWatch(etcd, where)}
                self._process.take_along(self._registry_watches[self._process.forks])
            return self._registry_watches[self._process.forks]

    def _open(self) -> Any:
        if not isinstance(self._source, str | Sequence):
            return self._source
        return Etcd(
            self._source,
            user=self._options.get("user", ""),
            password=self._password,
            tls=self._tls,
            timeout_seconds=self._options.get("etcd_timeout_seconds", TIMEOUT_SECONDS),
        )

    def close(self) -> None:
        """Stop following services, and deregister the endpoints of this process.

        Open channels keep their last known endpoints until they are closed.
        """
        with self._lock:
            self._closed = True
            selections = tuple(self._selections.values())
        for selection in selections:
            selection.close()
        super().close()

    def _close(self, opened: Any) -> None:
        if registrar := self._registrars.pop(self._process.forks, None):
            registrar.close()
        if opened is not self._source:
            opened.close()  # first, since the others wait for calls that are under way
        if registry_watch := self._registry_watches.pop(self._process.forks, None):
            registry_watch.close()
        for watch in self._watches:
            watch.close()
        if self._static:
            self._static.close()


class AioEtcdRegistry(AioWritableRegistry[Registration]):
    """The methods of a `Registry` for asyncio, from `Registry.aio`."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._etcd_registry = registry

    def select(self, *, metadata: Mapping[str, str]) -> AioSelectedRegistry:
        """As `Registry.select`; does not block."""
        return self._etcd_registry.select(metadata=metadata).aio

    async def unregister(self, which: Registration | Endpoint, timeout_seconds: float | None = None) -> bool:
        """As `Registry.unregister`; takes effect even if the task is cancelled."""
        return all(await deregister_all_async(self._etcd_registry.registrar.find(which), timeout_seconds))

    async def watch_all(self) -> AsyncIterator[Mapping[str, tuple[Endpoint, ...]]]:
        """As `Registry.watch_all`; each wait for the next change occupies a thread."""
        watch = self._etcd_registry.watch_all()  # returns at once, so it cannot be cancelled halfway
        try:
            while (services := await in_own_thread(lambda: next(watch, None), daemon=True)) is not None:
                yield services
        finally:
            watch.begin_close()  # what is under way may take as long as etcd, and the loop is not to stand still


def list_at_once(etcd: Any, prefixes: Sequence[bytes]) -> tuple[Listing, ...]:
    """Read prefixes at one revision: what moves from one to another is in either."""
    first, *others = prefixes
    try:
        listing = etcd.get_prefix(first)
        return (listing, *(etcd.get_prefix(prefix, revision=listing.revision) for prefix in others))
    except PermissionDenied as error:
        error.name_grant("read", *prefixes)
        raise


def _listed(source: Sequence[str] | EtcdReader) -> Sequence[object]:
    return source if isinstance(source, Sequence) else (source,)


def _read(chosen: settings.ClientSettings) -> dict[str, Any]:
    """Return the options of a registry with these settings."""
    return {
        "prefix": chosen.prefix,
        "layouts": chosen.layouts,
        "name": chosen.name,
        "user": chosen.user,
        "password": chosen.password,
        "password_file": chosen.password_file or None,
        "ca": chosen.ca or None,
        "cert": chosen.cert or None,
        "key": chosen.key or None,
        "server_name": chosen.server_name,
        "etcd_timeout_seconds": chosen.timeout,
        "zone": chosen.zone,
        "region": chosen.region,
        "cluster": chosen.cluster,
        "client_id": chosen.client_id,
        "cache_dir": chosen.cache_dir or None,
        "pod_ip": chosen.pod_ip,
        "static": chosen.static,
    }
